"""`combination:`: two responses in one, and the request repeated first."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import Check, Finding, NoArguments, exactly, shown

_DIVIDER = "******"


def two_responses(text: str, _: NoArguments) -> Finding:
    """Two different texts with six asterisks between them; a divider may also come first or last."""
    parts = [part.strip() for part in text.split(_DIVIDER)]
    if not all(parts[1:-1]):
        return Finding(False, f"an empty response between two dividers {_DIVIDER}")
    given = [part for part in parts if part]
    if len(given) == 2 and given[0] == given[1]:
        return Finding(False, "2 responses that are the same, different ones wanted")
    return exactly(len(given), 2, f"responses between {_DIVIDER}")


@dataclass(frozen=True, slots=True)
class RepeatPrompt:
    prompt_to_repeat: str = arguments.text(arguments.MAX_LONG_TEXT_CHARACTERS)


def repeat_prompt(text: str, wanted: RepeatPrompt) -> Finding:
    """The text starts with the request, apart from case and outer white space."""
    wanted_start, start = wanted.prompt_to_repeat.lower(), text.strip().lower()
    found = start.startswith(wanted_start)
    detail = "starts with the request" if found else f"starts with {shown(text.strip())}, the request wanted"
    return Finding(found, detail)


CHECKS = {
    "combination:two_responses": Check(NoArguments, two_responses),
    "combination:repeat_prompt": Check(RepeatPrompt, repeat_prompt),
}
