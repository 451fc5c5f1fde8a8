"""Checkers: programs that say whether an output is right where several are. They come with the problems of a data set and
run in the sandbox, each time in a process of their own: never beside a solution, and never out here.

The form is that of open-r1/codeforces: Python that is called as
`checker.py input.txt correct_output.txt solution_output.txt` and prints 1 for an output that it accepts.
"""

from __future__ import annotations

from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.python_source import parse_module
from megatron_ring.rewards.sandbox import RunResult
from megatron_ring.rewards.sandbox.images import PYTHON_LIMITS
from megatron_ring.rewards.sandbox.runner import CodeRunner

CHECKER_SECONDS = 15.0
MAX_CHECKER = 1 << 18  # characters
FILES = ("input.txt", "correct_output.txt", "solution_output.txt")
ACCEPTED = b"1"

# What comes before a checker, in the sandbox: the three files, whose contents follow each other on stdin.
_SETUP = """import sys
for _name, _size in {files!r}:
    with open(_name, "wb") as _file:
        _file.write(sys.stdin.buffer.read(_size))
sys.argv = ["checker.py", {arguments}]
del _name, _size, _file
"""


def read_checker(value: Any) -> str | None:
    """The checker of a reference; None where it has none, or an empty one.

    Raises:
        UserError: it is no text, too long, or not Python.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) or len(value) > MAX_CHECKER:
        raise UserError(f"the checker is no Python program of at most {MAX_CHECKER} characters")
    try:
        parse_module(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"the checker is not Python: {error}"[:200]) from None
    return value


def checker_problem(checker: str, given: bytes, expected: bytes, printed: bytes, runner: CodeRunner) -> str | None:
    """Why a checker does not accept what a solution printed; None where it does.

    A checker that fails, prints anything but 1 or takes longer than 15 s accepts nothing: as a rule it stumbled over an
    output that is none.
    """
    contents = (given, expected, printed)
    sizes = [(name, len(content)) for name, content in zip(FILES, contents, strict=True)]
    setup = _SETUP.format(files=sizes, arguments=", ".join(map(repr, FILES)))
    limits = PYTHON_LIMITS.within(CHECKER_SECONDS)
    result = runner.python("script", {"source": checker, "setup": setup}, limits, b"".join(contents))
    return None if result.ok and result.stdout.strip() == ACCEPTED else _why(result)


def _why(result: RunResult) -> str:
    if not result.ok:
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        return f"the checker failed: {result.reason}" + (f" ({' '.join(lines[-1].split())[:120]})" if lines else "")
    said = " ".join(result.stdout[:200].decode("utf-8", "replace").split())
    return f"the checker does not accept it (it said {said[:60]!r})"
