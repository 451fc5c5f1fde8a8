"""Multiple choice: GPQA, MMLU-Pro, SuperGPQA, ARC-c, MuSR. The last line of a response names a letter."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Grade, Problem, Row
from megatron_ring.benchmarks.rows import RowError, as_text, first, id_of, need, parsed, text
from megatron_ring.rewards.boxed import last_boxed

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOLD = (
    "Reason step by step. The last line of your response is of the form 'Answer: X', without quotes, where X is the letter "
    "of one option."
)
_ANSWER = re.compile(
    r"(?i:answer|option|choice)(?i:\s{1,3}is)?[\s:*_$({\[=\"'`]{1,12}"
    r"(?:\\(?:boxed|text|textbf|mathrm|mathbf)\s?\{[\s({\[]{0,3}(?:\\(?:text|textbf|mathrm|mathbf)\s?\{)?){0,2}"
    r"([A-Z])(?![A-Za-z'])"
)
_ALONE = re.compile(r"[\s(\[{*_$\"'`\\]{0,8}([A-Z])[\s)\]}*_$\"'`.\\]{0,8}")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{([^{}]*)\}")


def ask(question: str, options: Sequence[str]) -> str:
    """The prompt of a question with its options."""
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question}\n\n{listed}\n\n{_TOLD}"


def letter_of(response: str, options: int) -> str | None:
    """The letter that a response settles on: the last 'Answer: X' or box; else a last line that is a letter alone."""
    known = LETTERS[:options]
    found: tuple[int, str] | None = None
    for match in _ANSWER.finditer(response):
        if match[1] in known:
            found = (match.start(1), match[1])
    boxed = last_boxed(response)
    if boxed is not None:
        alone = _ALONE.fullmatch(_WRAPPED.sub(r"\1", boxed)) or re.match(r"\(?([A-Z])[).:]", boxed.strip())
        place = response.rfind("\\boxed")
        if alone is not None and alone[1] in known and (found is None or place > found[0]):
            found = (place, alone[1])
    if found is not None:
        return found[1]
    last = next((line for line in reversed(response.split("\n")) if line.strip()), "")
    alone = _ALONE.fullmatch(last) if len(last) < 40 else None
    return alone[1] if alone is not None and alone[1] in known else None


def score(problem: Problem, response: str) -> Grade:
    """1 for the right letter."""
    given = letter_of(response, problem.metadata["options"])
    if given is None:
        return Grade(0.0, None, "no letter of an option found")
    return Grade(float(given == problem.answer), given, f"answered {given}, expected {problem.answer}")


def _problem(number: str, question: str, options: Sequence[str], index: int, category: Any = "", **more: Any) -> Problem:
    if not 2 <= len(options) <= len(LETTERS):
        raise RowError(f"{len(options)} options; 2 to {len(LETTERS)} can be asked")
    if not 0 <= index < len(options):
        raise RowError(f"the answer is option {index + 1} of {len(options)}")
    metadata = {"options": len(options), **more}
    return Problem(number, ask(question, options), LETTERS[index], "", str(category or ""), {}, metadata)


def _options(value: Any, name: str) -> list[str]:
    found = parsed(value, name)
    if not isinstance(found, list | tuple):
        raise RowError(f"the column '{name}' is no list of options")
    return [as_text(option, name) for option in found]


def gpqa(row: Row) -> Problem:
    """GPQA. The order of its options comes from the question's text alone: the same in every run, file and order of rows."""
    question = text(row, "question")
    right = _tidy(text(row, "correct answer"))
    options = [right, *(_tidy(text(row, f"incorrect answer {number}")) for number in (1, 2, 3))]
    order = list(range(4))
    random.Random(int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big")).shuffle(order)
    return _problem(
        id_of(row, "record id", "id"), question, [options[place] for place in order], order.index(0),
        first(row, "high-level domain"), order=order,
    )  # fmt: skip


def _tidy(option: str) -> str:
    return re.sub(r" {2,}", " ", option.replace(" [title]", ". ")).strip()


def mmlu_pro(row: Row) -> Problem:
    """MMLU-Pro: up to ten options; `answer_index`, or the letter in `answer`."""
    options = _options(need(row, "options"), "options")
    letter = first(row, "answer", "answer_letter")
    index = first(row, "answer_index")
    if index is None:
        index = _place(letter, options)
    elif letter is not None and letter in LETTERS and LETTERS.index(letter) != index:
        raise RowError(f"'answer' is {letter} and 'answer_index' is {index}")
    return _problem(id_of(row, "question_id", "id"), text(row, "question"), options, int(index), first(row, "category"))


def super_gpqa(row: Row) -> Problem:
    """SuperGPQA: the letter in `answer_letter`, the option's text in `answer`."""
    options = _options(need(row, "options"), "options")
    letter = first(row, "answer_letter")
    index = _place(letter, options) if letter is not None else _place(need(row, "answer"), options)
    return _problem(id_of(row, "uuid", "id"), text(row, "question"), options, index, first(row, "discipline"))


def arc_challenge(row: Row) -> Problem:
    """ARC: 3 to 5 choices with labels A to E or 1 to 5; the key is looked up among the labels."""
    choices = parsed(need(row, "choices"), "choices")
    if isinstance(choices, list):
        choices = {"text": [choice.get("text") for choice in choices], "label": [choice.get("label") for choice in choices]}
    if not isinstance(choices, Mapping) or not isinstance(choices.get("text"), list):
        raise RowError("the column 'choices' has no 'text' and 'label'")
    labels = [str(label) for label in choices.get("label") or LETTERS[: len(choices["text"])]]
    key = text(row, "answerkey")
    if key not in labels:
        raise RowError(f"'answerKey' is {key!r}, which is none of the labels {', '.join(labels)}")
    options = [as_text(option, "choices") for option in choices["text"]]
    return _problem(id_of(row, "id"), text(row, "question"), options, labels.index(key))


def musr(row: Row) -> Problem:
    """MuSR: a narrative; its choices are a Python literal in the public files."""
    options = _options(need(row, "choices"), "choices")
    index = first(row, "answer_index")
    index = _place(need(row, "answer_choice"), options) if index is None else int(as_text(index, "answer_index"))
    question = f"{text(row, 'narrative')}\n\n{text(row, 'question')}"
    return _problem(id_of(row, "id"), question, options, index, first(row, "task", "split"))


def _place(answer: Any, options: list[str]) -> int:
    """Which option an answer is: by its letter, or by its text."""
    written = as_text(answer, "answer")
    if len(written) == 1 and written in LETTERS[: len(options)]:
        return LETTERS.index(written)
    if written in options:
        return options.index(written)
    raise RowError(f"the answer {written[:40]!r} is none of the {len(options)} options")
