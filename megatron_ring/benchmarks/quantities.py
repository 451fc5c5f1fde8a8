"""OlympiadBench and TheoremQA: answers of declared types, with tolerances of their own."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from megatron_ring.benchmarks.math_sets import asked
from megatron_ring.benchmarks.problem import Grade, Problem, Row
from megatron_ring.benchmarks.rows import LeftOut, RowError, as_text, first, id_of, parsed, text
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.exact import parse_number

THEOREM_TOLERANCE = Fraction(4, 100)  # of a float, relative: that of the benchmark's own scorer
_LETTER = re.compile(r"\(?([a-dA-D])\)?[.:]?")
_BRACKETED = re.compile(r"(?:\\left)?\\?[\[({](.*?)(?:\\right)?\\?[\])}]", re.DOTALL)
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


def olympiad(subject: str) -> Any:
    """The maker of OlympiadBench's problems of one subject ("math" or "physics")."""

    def make(row: Row) -> Problem:
        if any(first(row, f"image_{number}") is not None for number in range(1, 10)):
            raise LeftOut("with images")
        if str(first(row, "modality") or "text").lower().startswith("multi"):
            raise LeftOut("with images")
        if "open" not in str(first(row, "question_type") or "open-ended").lower():
            raise LeftOut("that ask for a proof")
        if subject not in str(first(row, "subject") or subject).lower():
            raise LeftOut("of another subject")
        found = parsed(first(row, "final_answer"), "final_answer") if first(row, "final_answer") is not None else None
        answers = found if isinstance(found, list) else [] if found is None else [found]
        if not answers:
            raise LeftOut("without a final answer")
        written = ", ".join(_bare(as_text(answer, "final_answer")) for answer in answers)
        unit = str(first(row, "unit") or "").strip()
        context = str(first(row, "context") or "").strip()
        told = [f"The answer is of the type: {first(row, 'answer_type')}."] if first(row, "answer_type") else []
        told += [f"The unit of the answer is {unit}; do not write the unit."] if unit else []
        told += ["There are several answers; separate them by commas."] if _true(first(row, "is_multiple_answer")) else []
        question = "\n\n".join(part for part in (context, text(row, "question"), " ".join(told)) if part)
        error = first(row, "error")
        return Problem(
            id_of(row, "id"), asked(question), {"text": written, "error": None if error is None else str(error)}, "math",
            str(first(row, "subfield") or ""),
        )  # fmt: skip

    return make


def score_olympiad(problem: Problem, response: str) -> Grade | None:
    """Numbers within the tolerance that the row states; all else is for mathematics to decide."""
    given = last_boxed(response)
    if given is None:
        return Grade(0.0, None, "no boxed answer")
    error = problem.answer["error"]
    if error is None:
        return None
    wanted, got = _numbers(problem.answer["text"]), _numbers(given)
    allowed = _numbers(error)
    if wanted is None or got is None or allowed is None:
        return None
    if len(wanted) != len(got):
        return Grade(0.0, _key(got), f"{len(got)} numbers, expected {len(wanted)}")
    allowed = allowed if len(allowed) == len(wanted) else [allowed[0]] * len(wanted)
    near = all(abs(a - b) <= e for a, b, e in zip(sorted(wanted), sorted(got), allowed, strict=True))
    return Grade(float(near), _key(got), "within the tolerance" if near else f"not within {error} of the reference")


def theorem_qa(row: Row) -> Problem:
    """TheoremQA, its problems with pictures left out."""
    if first(row, "picture") is not None and str(row["picture"]).lower() not in ("none", "nan"):
        raise LeftOut("with a picture")
    kind = text(row, "answer_type").lower()
    value = row.get("answer")
    if value is None:
        raise RowError("the column 'answer' is missing")
    answer = _typed(value, kind)
    told = {
        "bool": "Answer True or False.", "option": "Answer with the letter of the option.",
        "list of integer": "Answer with a list of numbers in the order that is asked for, separated by commas.",
        "list of float": "Answer with a list of numbers in the order that is asked for, separated by commas.",
    }.get(kind, "Answer with one number.")  # fmt: skip
    prompt = asked(f"{text(row, 'question')}\n\n{told}")
    return Problem(
        id_of(row, "id"), prompt, {"kind": kind, "value": answer}, "math", str(first(row, "subfield", "field") or "")
    )


def score_theorem_qa(problem: Problem, response: str) -> Grade | None:
    """By the type of the answer. A number that is not written as one is for mathematics to decide."""
    boxed = last_boxed(response)
    if boxed is None:
        return Grade(0.0, None, "no boxed answer")
    kind, value = problem.answer["kind"], problem.answer["value"]
    given = _WRAPPED.sub(r"\1", boxed).strip().strip("$")
    if kind == "bool":
        word = given.strip(" .").lower()
        if word not in ("true", "false", "yes", "no"):
            return Grade(0.0, None, f"{given[:40]!r} is neither True nor False")
        said = word in ("true", "yes")
        return Grade(float(said == value), str(said), f"answered {said}, expected {value}")
    if kind == "option":
        letter = _LETTER.fullmatch(given)
        if letter is None:
            return Grade(0.0, None, f"{given[:40]!r} is no option's letter")
        return Grade(float(letter[1].lower() == value), letter[1].lower(), f"answered {letter[1].lower()}, expected {value}")
    bracketed = _BRACKETED.fullmatch(given)
    got = _numbers(bracketed[1] if bracketed else given)
    wanted = [Fraction(str(item)) for item in (value if isinstance(value, list) else [value])]
    if got is None:
        return None if not isinstance(value, list) else Grade(0.0, given[:200], "no list of numbers")
    exact = "integer" in kind
    near = len(got) == len(wanted) and all(
        a == b if exact else abs(a - b) <= THEOREM_TOLERANCE * abs(a) for a, b in zip(wanted, got, strict=True)
    )
    return Grade(float(near), _key(got), "correct" if near else f"answered {given[:60]!r}, expected {value}")


def reference_text(problem: Problem) -> Any:
    """The reference as mathematics reads it."""
    answer = problem.answer
    return answer["text"] if "text" in answer else str(answer["value"])


def _typed(value: Any, kind: str) -> Any:
    """An answer of the type that the file declares; text is read as a literal and never run."""
    if kind == "option":
        found = _LETTER.fullmatch(as_text(value, "answer"))
        if found is None:
            raise RowError(f"the answer {str(value)[:40]!r} is no option from (a) to (d)")
        return found[1].lower()
    if kind == "bool" and isinstance(value, str):
        value = {"true": True, "false": False}.get(value.strip().lower())
    elif isinstance(value, str):
        value = parsed(value, "answer")
    items = value if isinstance(value, list | tuple) else [value]
    right = bool if kind == "bool" else int | float
    if not items or not all(isinstance(item, right) and (kind == "bool") == isinstance(item, bool) for item in items):
        raise RowError(f"the answer {str(value)[:40]!r} is not of the type {kind!r}")
    return list(items) if isinstance(value, list | tuple) else value


def _bare(written: str) -> str:
    return written.strip().strip("$").strip()


def _true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"


def _numbers(written: str) -> list[Fraction] | None:
    """Numbers separated by commas; None where one is none."""
    whole = parse_number(written.strip().strip("$"))
    if whole is not None:
        return [whole.value]
    found = [parse_number(part.strip().strip("$")) for part in re.split(r"[,;]", written)[:64]]
    numbers = [number.value for number in found if number is not None]
    return numbers if len(numbers) == len(found) else None


def _key(numbers: list[Fraction]) -> str:
    return ", ".join(map(str, numbers))
