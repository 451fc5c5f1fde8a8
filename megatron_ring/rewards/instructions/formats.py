"""`detectable_format:`: bullets, highlights, sections, a title, JSON, one of three answers."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from megatron_ring.rewards.instructions import arguments
from megatron_ring.rewards.instructions.finding import AT_LEAST, Check, Finding, NoArguments, compared, exactly
from megatron_ring.rewards.instructions.text import bullets, lines

CONSTRAINED_RESPONSES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# Linear: a failed search ends at the next asterisk or line break, where the next one starts.
_EMPHASIS = re.compile(r"\*([^*\n]*+)\*")
_STRONG = re.compile(r"\*\*([^*\n]*+)\*\*")
_FENCES = ("```json", "```Json", "```JSON", "```")


@dataclass(frozen=True, slots=True)
class NumberBulletLists:
    num_bullets: int = arguments.integer()


def number_bullet_lists(text: str, wanted: NumberBulletLists) -> Finding:
    """Exactly so many bullets, see `text.bullets`."""
    return exactly(len(bullets(text)), wanted.num_bullets, "bullet points")


def constrained_response(text: str, _: NoArguments) -> Finding:
    """One of the three sentences occurs, as in the public definition with other text around it or not."""
    found = any(option in text for option in CONSTRAINED_RESPONSES)
    return Finding(found, f"{'has' if found else 'has none'} of the 3 answers ({CONSTRAINED_RESPONSES[0]!r}, …)")


@dataclass(frozen=True, slots=True)
class NumberHighlightedSections:
    num_highlights: int = arguments.integer()


def number_highlighted_sections(text: str, wanted: NumberHighlightedSections) -> Finding:
    """Text in `*…*` or `**…**` on one line, not blank. `***…***` counts twice, as in the public definition."""
    number = sum(1 for pattern in (_EMPHASIS, _STRONG) for inside in pattern.findall(text) if inside.strip())
    return compared(number, AT_LEAST, wanted.num_highlights, "highlighted sections")


@dataclass(frozen=True, slots=True)
class MultipleSections:
    section_spliter: str = arguments.text()
    num_sections: int = arguments.integer()


def multiple_sections(text: str, wanted: MultipleSections) -> Finding:
    """At least so many headings: the word, at most one white space, a number. Case counts."""
    number = len(re.findall(re.escape(wanted.section_spliter) + r"\s?\d++", text))
    return compared(number, AT_LEAST, wanted.num_sections, f"headings '{wanted.section_spliter} X'")


def json_format(text: str, _: NoArguments) -> Finding:
    """The whole text is one JSON value, in a markdown fence or not; `NaN` and `Infinity` are not JSON."""
    text = text.strip()
    fence = next((fence for fence in _FENCES if text.startswith(fence)), "")
    text = text.removeprefix(fence).removesuffix("```").strip()
    try:
        # Numbers stay text: Python reads one of many digits in quadratic time, or refuses to.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_not_json)
    except ValueError as error:
        return Finding(False, f"not JSON: {error}")
    except RecursionError:
        return Finding(False, "not JSON: nested too deeply")
    return Finding(True, "JSON")


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def title(text: str, _: NoArguments) -> Finding:
    """A line holds `<<…>>` with something in it."""
    found = any(map(_has_title, lines(text)))
    return Finding(found, f"{'a' if found else 'no'} title in <<…>>")


def _has_title(line: str) -> bool:
    opened, closed = line.find("<<"), line.rfind(">>")
    return 0 <= opened < closed and bool(line[opened:closed].lstrip("<").rstrip(">").strip())


CHECKS = {
    "detectable_format:number_bullet_lists": Check(NumberBulletLists, number_bullet_lists),
    "detectable_format:constrained_response": Check(NoArguments, constrained_response),
    "detectable_format:number_highlighted_sections": Check(NumberHighlightedSections, number_highlighted_sections),
    "detectable_format:multiple_sections": Check(MultipleSections, multiple_sections),
    "detectable_format:json_format": Check(NoArguments, json_format),
    "detectable_format:title": Check(NoArguments, title),
}
