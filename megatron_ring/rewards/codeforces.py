"""Problems of Codeforces in open-r1's form: official tests, time limits, and checkers where several outputs are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.checkers import read_checker

TIME_FACTOR = 2.0  # the judge's machines are not ours
DEFAULT_SECONDS = 2.0


class Unsupported(UserError):
    """A problem that cannot be judged by running a program on tests. The message says what it is, of several problems."""


def codeforces_answer(row: Mapping[str, Any], tests: Any) -> dict[str, Any]:
    """The reference of a row, as `code_formats.read_plain` reads it: tests, twice the time limit, and the checker.

    Args:
        row: with `time_limit` (seconds), `generated_checker`, `input_mode` and `interaction_format`; its names in small
            letters.
        tests: its official ones, a list of {input, output}.

    Raises:
        Unsupported: it is interactive, its programs read and write files, or its checker cannot be read.
        UserError: the tests, or the time limit, are none.
    """
    if str(row.get("interaction_format") or "").strip():
        raise Unsupported("that are interactive")
    if str(row.get("input_mode") or "stdio").strip().lower() not in ("stdio", "standard"):
        raise Unsupported("that read and write files")
    if not isinstance(tests, list) or not all(
        isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in tests
    ):
        raise UserError("the column 'official_tests' is no list of {input, output}")
    try:
        seconds = float(row.get("time_limit") or DEFAULT_SECONDS)
    except (TypeError, ValueError):
        raise UserError(f"the column 'time_limit' is {str(row['time_limit'])[:40]!r}, no number of seconds") from None
    answer = {
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
        "time_limit": TIME_FACTOR * seconds,
    }
    try:
        checker = read_checker(row.get("generated_checker"))
    except UserError:
        raise Unsupported("whose checker is no Python that can be read") from None
    return {**answer, **({"checker": checker} if checker is not None else {})}
