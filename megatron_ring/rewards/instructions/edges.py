"""`startend:` and `punctuation:`: how the response begins and ends, and that it has no commas."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import Check, Finding, NoArguments, shown


@dataclass(frozen=True, slots=True)
class EndChecker:
    end_phrase: str = arguments.text(arguments.MAX_LONG_TEXT_CHARACTERS)


def end_checker(text: str, wanted: EndChecker) -> Finding:
    """The text ends with the phrase, apart from case, outer white space and double quotes around the whole."""
    end = text.strip().lower()
    found = end.endswith(wanted.end_phrase.lower()) or end.strip('"').endswith(wanted.end_phrase.lower())
    tail = f"ends with {shown(end[-60:])}"
    return Finding(found, tail if found else f"{tail}, {shown(wanted.end_phrase)} wanted")


def quotation(text: str, _: NoArguments) -> Finding:
    """The first and the last character are `"`, and not the same one."""
    text = text.strip()
    found = len(text) > 1 and text[0] == text[-1] == '"'
    return Finding(found, f"starts with {text[:1]!r} and ends with {text[-1:]!r}, double quotes wanted")


def no_comma(text: str, _: NoArguments) -> Finding:
    """No `,`. Commas of other scripts (`，`, `،`) are allowed, as in the public definition."""
    number = text.count(",")
    return Finding(number == 0, f"{number} commas, none wanted")


CHECKS = {
    "startend:end_checker": Check(EndChecker, end_checker),
    "startend:quotation": Check(NoArguments, quotation),
    "punctuation:no_comma": Check(NoArguments, no_comma),
}
