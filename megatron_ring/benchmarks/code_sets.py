"""Code: HumanEval and MBPP (and their + forms), LiveCodeBench by windows of dates, Codeforces with its official tests."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_ring.benchmarks.problem import Problem, Row
from megatron_ring.benchmarks.rows import LeftOut, RowError, first, id_of, need, parsed, text
from megatron_ring.errors import UserError
from megatron_ring.rewards.code_formats import check_tests
from megatron_ring.rewards.codeforces import TIME_FACTOR, Unsupported, codeforces_answer

_PYTHON = "Write the solution in Python. End with the whole program in one block fenced by ```python and ```."
_STDIN = "The program reads from standard input and writes to standard output."
LIVE_SECONDS = 6.0  # each test of LiveCodeBench, as its harness has it


@dataclass(frozen=True)
class Window:
    """Days of contests, both ends included. An end that is None is open."""

    first: datetime.date | None = None
    last: datetime.date | None = None

    @classmethod
    def parse(cls, written: str, flag: str) -> Window:
        """From `2024-08-01:2025-01-31`; raises `UserError` that names the flag."""
        begin, sign, end = written.partition(":")
        try:
            window = cls(*(datetime.date.fromisoformat(part) if part else None for part in (begin, end)))
        except ValueError:
            raise UserError(f"{flag} {written}: give FROM:TO, two days such as 2024-08-01:2025-01-31") from None
        if not sign or (window.first and window.last and window.first > window.last):
            raise UserError(f"{flag} {written}: give FROM:TO, the earlier day first")
        return window

    def holds(self, day: datetime.date) -> bool:
        """Whether a day lies within it."""
        return (self.first is None or self.first <= day) and (self.last is None or day <= self.last)

    def __str__(self) -> str:
        return f"{self.first or ''}:{self.last or ''}"


def _checked(problem: Problem) -> Problem:
    """The problem, whose tests can be read as far as that is quick to see."""
    try:
        check_tests(problem.answer)
    except UserError as error:
        raise RowError(str(error)) from None
    return problem


def humaneval(row: Row) -> Problem:
    """HumanEval and HumanEval+: a function to complete, and `check(candidate)`."""
    prompt = need(row, "prompt")
    asked = f"Complete this function. {_PYTHON.replace('program', 'function')}\n\n```python\n{prompt}\n```"
    answer = {"format": "humaneval", "prompt": prompt, "test": need(row, "test"), "entry_point": need(row, "entry_point")}
    return _checked(Problem(id_of(row, "task_id"), asked, answer, "code"))


def mbpp(row: Row) -> Problem:
    """MBPP (whole or sanitised) and MBPP+: a sentence and assertions. The + form's `test` takes the place of the list."""
    tests = parsed(need(row, "test_list"), "test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise RowError("the column 'test_list' is no list of assertions")
    shown = "\n".join(tests)
    imports = parsed(first(row, "test_imports") or [], "test_imports")
    setup = first(row, "test_setup_code") or "\n".join(imports)
    asked = f"{text(row, 'text', 'prompt')}\nThe code must pass these tests:\n```python\n{shown}\n```\n\n{_PYTHON}"
    whole = first(row, "test")
    answer = {"tests": whole if isinstance(whole, str) else shown, **({"setup": setup} if setup else {})}
    return _checked(Problem(id_of(row, "task_id"), asked, answer, "code"))


def plus(make: Callable[[Row], Problem]) -> Callable[[Row], Problem]:
    """The maker of a + form's problems: a file with the tests of the original alone is refused."""

    def checked(row: Row) -> Problem:
        if row.get("plus_input") is not None:
            raise RowError(
                "EvalPlus's own release, whose tests are made by running its solutions: give the parquet file of "
                "evalplus/humanevalplus or evalplus/mbppplus, which has them in 'test'"
            )
        need(row, "test")
        return make(row)

    return checked


def live_code(window: Window) -> Callable[[Row], Problem]:
    """The maker of LiveCodeBench's problems of a window. Tests are read by rewards/, whose unpickler refuses every class."""

    def make(row: Row) -> Problem:
        written = text(row, "contest_date")
        try:
            day = datetime.datetime.fromisoformat(written).date()
        except ValueError:
            raise RowError(f"'contest_date' is {written[:40]!r}, not an ISO date") from None
        if not window.holds(day):
            raise LeftOut(f"outside the window {window}")
        starter = str(first(row, "starter_code") or "").strip()
        how = f"Use this starter code:\n```python\n{starter}\n```" if starter else _STDIN
        names = ("public_test_cases", "private_test_cases", "metadata")
        tests = {name: row[name] for name in names if row.get(name) is not None}
        if not tests.keys() & {"public_test_cases", "private_test_cases"}:
            raise RowError("the column 'public_test_cases' (or private_test_cases) is missing")
        answer = {"format": "livecodebench", "time_limit": LIVE_SECONDS, **tests}
        metadata = {"day": day.isoformat(), "platform": row.get("platform")}
        return _checked(
            Problem(
                id_of(row, "question_id"),
                f"{text(row, 'question_content')}\n\n{how}\n\n{_PYTHON}",
                answer,
                "code",
                str(first(row, "difficulty") or ""),
                {},
                metadata,
            )
        )

    return make


def codeforces(row: Row) -> Problem:
    """Codeforces with official tests, in open-r1's form. What running a program cannot judge is left out and counted."""
    tests = parsed(first(row, "official_tests") or [], "official_tests")
    try:
        answer = codeforces_answer(row, tests)
    except Unsupported as why:
        raise LeftOut(str(why), id_of(row, "id")) from None
    except UserError as error:
        raise RowError(str(error)) from None
    if not tests or row.get("official_tests_complete") is False:
        raise LeftOut("without all of their official tests")
    parts = [text(row, "title"), text(row, "description")]
    for title, name in (("Input", "input_format"), ("Output", "output_format"), ("Note", "note")):
        if first(row, name) is not None:
            parts.append(f"{title}\n{first(row, name)}")
    for example in parsed(first(row, "examples") or [], "examples"):
        parts.append(f"Example input\n{example.get('input')}\nExample output\n{example.get('output')}")
    limits = f"Time limit: {answer['time_limit'] / TIME_FACTOR:g} s a test. {_STDIN}"
    several = " Where several answers are right, any is accepted." if "checker" in answer else ""
    language = "Write the solution in C++17. End with the whole program in one block fenced by ```cpp and ```."
    metadata: dict[str, Any] = {"contest": str(first(row, "contest_id") or ""), "index": str(first(row, "index") or "")}
    rating = first(row, "rating")
    level = "" if rating is None else f"{int(rating) // 400 * 400}+"
    prompt = "\n\n".join([*parts, limits + several, language])
    problem = Problem(id_of(row, "id"), prompt, {"format": "tests", **answer}, "code", level, {}, metadata)
    return _checked(problem)


def solution_block(code: str, language: str = "python") -> str:
    """A response that holds a solution, as one is looked for: for canonical solutions."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"
