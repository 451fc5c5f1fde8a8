r"""The form of a response, for the gates of a composition: thinking, box, JSON, repetition, script, language.

The reference is an object of options; `{}` takes the defaults.

| domain            | reward 1 when                                             | options                                   |
|-------------------|-----------------------------------------------------------|-------------------------------------------|
| `format/thinking` | one `<think>…</think>` begins it, and an answer follows   | `opened`: the template has opened it      |
| `format/one_box`  | exactly one `\boxed{…}` after the thinking, not blank     |                                           |
| `format/json`     | after the thinking one JSON value alone, or in one fence  | `keys` ([]): what an object must have     |
| `format/repetition` | a small share of runs of words is said again            | `words` (4) of a run, `share` (0.3)       |
| `format/script`   | a share of the answer's letters is of one script          | `script` ("latin"), `share` (0.9)         |
| `format/style`    | few marks of Markdown for its words (see `style`)         | `most` (10) for 100 words                 |
| `format/language` | langdetect finds the answer's language                    | `language` ("en"), an ISO 639-1 code      |
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.answer_text import tokens
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.instructions.detection import LANGUAGES, detect_language, is_language
from megatron_ring.rewards.instructions.finding import shown
from megatron_ring.rewards.instructions.text import THINK_CLOSE, THINK_OPEN, answer_part
from megatron_ring.rewards.interface import Reward, ScoreRequest

SCRIPTS = [
    "arabic",
    "bengali",
    "cyrillic",
    "devanagari",
    "greek",
    "han",
    "hangul",
    "hebrew",
    "kana",
    "latin",
    "tamil",
    "thai",
]

_BOX = re.compile(r"\\boxed\s*+\{")
_FENCED = re.compile(r"^```.*?^```[^\S\n]*$", re.M | re.S)
_LINE_MARK = re.compile(r"^[^\S\n]{0,8}(?:#{1,6}\s|[-*+]\s|\d{1,3}[.)]\s|\||>)", re.M)
_BOLD = re.compile(r"\*\*(?=\S)[^*\n]{1,200}\*\*")
_ONE_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_MOST_CHARACTERS = 1 << 20
# The names Unicode gives the letters of a script start with these; the others start with the script's own.
_LETTER_NAMES = {"han": ("CJK",), "kana": ("HIRAGANA", "KATAKANA"), "latin": ("LATIN", "FULLWIDTH LATIN")}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "format/thinking": {"opened": False},
    "format/one_box": {},
    "format/json": {"keys": []},
    "format/repetition": {"words": 4, "share": 0.3},
    "format/script": {"script": "latin", "share": 0.9},
    "format/language": {"language": "en"},
    "format/style": {"most": 10},
}


def read_options(domain: str, given: Any) -> dict[str, Any]:
    """The options of one of these domains, checked, with defaults; for compositions, before anything is sampled.

    Raises:
        UserError: the message names the option.
    """
    defaults = _DEFAULTS[domain]
    if not isinstance(given, Mapping):
        raise UserError(f"the options of {domain} must be an object, not {type(given).__name__}")
    unknown = given.keys() - defaults.keys()
    if unknown:
        raise UserError(f"{domain} has an unknown option {shown(str(min(unknown, key=str)))}")
    options = {**defaults, **given}
    for name, allowed in (("opened", (False, True)), ("script", SCRIPTS), ("language", sorted(LANGUAGES))):
        if name in options and (options[name] not in allowed or isinstance(options[name], bool) != (name == "opened")):
            said = ", ".join(map(str, allowed)).lower()
            raise UserError(f"{domain}: {name!r} must be one of {said}, not {shown(repr(options[name]))}")
    keys, size = options.get("keys", []), options.get("words", 1)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"{domain}: 'keys' must be a list of texts, not {shown(repr(keys))}")
    if type(size) is not int or not 1 <= size <= 32:
        raise UserError(f"{domain}: 'words' must be a whole number from 1 to 32, not {shown(repr(size))}")
    share = options.get("share", 1)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"{domain}: 'share' must be a number from 0 to 1, not {shown(repr(share))}")
    most = options.get("most", 0)
    if isinstance(most, bool) or not isinstance(most, int | float) or not 0 <= most < float("inf"):
        raise UserError(f"{domain}: 'most' must be a number of at least 0, not {shown(repr(most))}")
    return options


def _verifier(check: Callable[..., tuple[bool, str]]) -> Callable[[ScoreRequest], Reward]:
    """A check of the response under checked options, as a verifier."""

    def score(request: ScoreRequest) -> Reward:
        try:
            options = read_options(request.domain, request.answer)
        except UserError as error:
            return Reward(0.0, str(error))
        passed, detail = check(request.response, **options)
        return Reward(float(passed), detail)

    score.__doc__ = check.__doc__
    return score


@_verifier
def thinking(response: str, opened: bool) -> tuple[bool, str]:
    """One `<think>…</think>` that begins the response, and an answer after it; or only `</think>` where it was opened."""
    opens, closes = response.count(THINK_OPEN), response.count(THINK_CLOSE)
    if (opens, closes) != (0 if opened else 1, 1):
        return False, f"{opens} {THINK_OPEN} and {closes} {THINK_CLOSE}, {0 if opened else 1} and 1 wanted"
    before, _, after = response.partition(THINK_CLOSE)
    if not opened and not before.lstrip().startswith(THINK_OPEN):
        return False, f"the response does not begin with {THINK_OPEN}"
    return bool(after.strip()), f"{len(after.strip())} characters after {THINK_CLOSE}, at least 1 wanted"


@_verifier
def one_box(response: str) -> tuple[bool, str]:
    r"""Exactly one `\boxed{…}` after the thinking, complete and not blank."""
    answer = answer_part(response)
    number = sum(1 for _ in _BOX.finditer(answer))
    complete = number == 1 and bool((last_boxed(answer) or "").strip())
    return complete, rf"{number} \boxed, " + ("complete" if complete else "exactly 1 complete one wanted")


@_verifier
def json_value(response: str, keys: list[str]) -> tuple[bool, str]:
    """One JSON value and nothing else after the thinking, but for a fence around it; an object with these keys, if any."""
    text = answer_part(response).strip()
    fenced = _ONE_FENCE.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False, "the answer is not one JSON value"
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    return not missing, f"the answer has no {shown(missing[0])}" if missing else "the answer is one JSON value"


@_verifier
def repetition(response: str, words: int, share: float) -> tuple[bool, str]:
    """Few enough runs of so many words, whatever their case, were said before; thinking and answer together. Characters of
    scripts without blanks are words of their own."""
    found = tokens(response[:_MOST_CHARACTERS])
    runs = [tuple(found[begin : begin + words]) for begin in range(len(found) - words + 1)]
    again = len(runs) - len(set(runs))
    return again <= share * len(
        runs
    ), f"{again} of {len(runs)} runs of {words} words said again, a share of {share:g} allowed"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


@_verifier
def script(response: str, script: str, share: float) -> tuple[bool, str]:
    """Enough of the letters after the thinking are of the script; an answer without letters passes."""
    names = _LETTER_NAMES.get(script, (script.upper(),))
    letters = inside = 0
    for character, number in Counter(answer_part(response)).items():
        if character.isalpha():
            letters += number
            inside += number if unicodedata.name(character, "").startswith(names) else 0
    return inside >= share * letters, f"{inside} of {letters} letters are {script}, a share of {share:g} wanted"


@_verifier
def style(response: str, most: float) -> tuple[bool, str]:
    """Not more than `most` marks of Markdown for 100 words of the answer, nor in all where it has fewer words.

    Marks are headings, items of lists, rows of tables, quotes and spans in bold; none inside fenced blocks. Judges like them
    whatever they say, which makes them a way to be paid for nothing.
    """
    answer = _FENCED.sub("", answer_part(response))
    marks = len(_LINE_MARK.findall(answer)) + len(_BOLD.findall(answer))
    words = len(answer.split())
    return marks <= most * max(1.0, words / 100), f"{marks} marks in {words} words, at most {most:g} for 100 wanted"


@_verifier
def language(response: str, language: str) -> tuple[bool, str]:
    """langdetect finds the language after the thinking; an answer without one, such as a number, fails."""
    found = detect_language(answer_part(response))
    return is_language(found, language), f"language {found or 'unknown'}, {language} wanted"
