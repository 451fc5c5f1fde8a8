"""Questions with options: found by their columns first, then by their text; and made open questions where that is
possible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KINDS = {
    "multiple_choice": {"mcq", "multiple choice", "choice", "single choice", "multi choice", "multichoice"},
    "true_false": {"true false", "true/false", "tf", "boolean", "judgement", "judgment"},
    "yes_no": {"yes no", "yes/no", "yesno"},
    "proof": {"proof", "proof problem", "prove"},
}
# A mark such as (A), A., B), \textbf{(C)}, at the beginning of a line or after a space, and before a space or TeX.
_MARK = re.compile(
    r"(?:(?<=[\s$~}])|^)\\?(?:(?:text|math)(?:bf|rm|it)?\s*\{\s*)?(?:\(\s*([A-J])\s*\)|\[([A-J])\]|([A-J])[.):．、])\s*\}?"
    r"(?=[\s~\\$\d-]|[^\x00-\x7f])",
    re.MULTILINE,
)
_SECOND_MARK = re.compile(r"B\s*[)\].:．、]")  # no options without it
_LETTER = re.compile(r"\s*\$?\\?(?:(?:text|math)(?:bf|rm)?\s*\{)?\s*\(?\s*([A-J])\s*\)?\s*[.:)]?\s*\}?\$?\s*")
_NEEDS_OPTIONS = re.compile(
    r"which\s+(?:\w+\s+){0,3}(?:of\s+(?:the|these)|following|statement|option|choice|one)|of\s+the\s+following|the\s+following\s+"
    r"(?:is|are|statement|option|choice|could|can|must)|\b(?:closest|best\s+(?:describes|approximat|estimate)|cannot\s+be|could\s+be"
    r"|not\s+(?:true|correct|possible)|must\s+be\s+true)\b|下列|以下|哪",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"(?:none|all|any|both|neither|either|some|more than one|insufficient|not enough|cannot|can't|\([A-J]\))\b",
    re.IGNORECASE,
)
_TRUE_FALSE = re.compile(r"\s*\\?(?:text\{)?(true|false)\}?\.?\s*", re.IGNORECASE)
_YES_NO = re.compile(r"\s*\\?(?:text\{)?(yes|no)\}?\s*[.!]?\s*", re.IGNORECASE)
MAX_OPTION = 120  # characters of an option that becomes an answer


@dataclass(frozen=True)
class Options:
    """The options of a question: its text without them, and their texts by letter."""

    stem: str
    texts: Mapping[str, str]


def kind_of_columns(metadata: Mapping[str, Any]) -> str | None:
    """What the columns of a row say that it is: a key of `_KINDS`; None where they say nothing of this."""
    for name in ("question_type", "problem_type", "answer_type", "type"):
        if not metadata.get(name):
            continue
        value = str(metadata[name]).lower().replace("-", " ").replace("_", " ").strip()
        found = next((kind for kind, words in _KINDS.items() if value in words), None)
        if found is not None:
            return found
    listed = metadata.get("options") or metadata.get("choices")
    if isinstance(listed, list | dict) and len(listed) > 1:
        return "multiple_choice"
    return None


def letter_of(answer: Any) -> str | None:
    """The option's letter that an answer is; None where it is none."""
    found = _LETTER.fullmatch(answer) if isinstance(answer, str) else None
    return found[1] if found else None


def kind_of_answer(text: str, answer: Any) -> str | None:
    """`true_false` or `yes_no` by the answer."""
    if isinstance(answer, bool) or (isinstance(answer, str) and _TRUE_FALSE.fullmatch(answer)):
        return "true_false"
    if isinstance(answer, str) and _YES_NO.fullmatch(answer):
        return "yes_no"
    asked = "true or false" in text.lower() or "判断" in text
    return "true_false" if asked and isinstance(answer, str) and answer.strip().upper() in ("T", "F") else None


def options_in(text: str) -> Options | None:
    """The options that a text lists, A first and two at least, each after the other."""
    if "A" not in text or not _SECOND_MARK.search(text):
        return None
    marks = [(next(filter(None, match.groups())), match) for match in _MARK.finditer(text)]
    for first, (letter, _) in enumerate(marks):
        if letter != "A":
            continue
        run = [marks[first][1]]
        for letter, match in marks[first + 1 :]:
            if letter == chr(ord("A") + len(run)):
                run.append(match)
        if len(run) >= 2:
            ends = [match.start() for match in run[1:]] + [len(text)]
            texts = {chr(ord("A") + i): _bare(text[match.end() : ends[i]]) for i, match in enumerate(run)}
            if all(texts.values()):
                stem = text[: run[0].start()].rstrip()
                if stem.endswith("$") and stem.count("$") % 2:  # the options are one formula
                    stem = stem[:-1].rstrip()
                return Options(stem, texts)
    return None


def _bare(text: str) -> str:
    """An option without the TeX around it."""
    text = re.sub(r"\\q?quad|\\hspace\{[^{}]*\}|\\ |~|\\hfill|\\\\|\\newline", " ", text)
    text = re.sub(r"^[\s{}\])]+|[\s,;.{&]+$|\\(?:text|math)?(?:bf|rm)?\{?\s*$", "", text)
    if text.count("$") % 2:  # the options were one formula
        text = text.replace("$", "")
    text = text.strip()
    while text.startswith("$") and text.endswith("$") and text.count("$") == 2 and len(text) > 2:
        text = text[1:-1].strip()
    if text.count("}") > text.count("{"):
        text = text.rstrip("} ")
    return text


def open_question(text: str, answer: Any, metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """The question and answer without options; None where the question makes no sense without them, or the answer names
    none."""
    letter = letter_of(answer)
    found = options_in(text)
    listed = metadata.get("options") or metadata.get("choices")
    if found is None and isinstance(listed, list) and all(isinstance(option, str) for option in listed):
        found = Options(text.strip(), {chr(ord("A") + i): _unmarked(option) for i, option in enumerate(listed)})
    if found is None or not found.stem.strip() or _NEEDS_OPTIONS.search(found.stem):
        return None
    right = (
        found.texts.get(letter) if letter else str(answer).strip() if str(answer).strip() in found.texts.values() else None
    )
    if not right or len(right) > MAX_OPTION or _NO_ANSWER.match(right) or any(map(_NO_ANSWER.match, found.texts.values())):
        return None
    return found.stem.strip(), right


def _unmarked(option: str) -> str:
    return re.sub(r"^\s*\(?[A-J][).:]\s*", "", option).strip()
