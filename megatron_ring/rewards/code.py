"""Code: reward 1 when the response's last code block passes every test in the sandbox, 0 otherwise.

What is expected never enters the sandbox with the solution: programs and functions are compared out here, unit tests
run in a process of their own (see `sandbox.guest_jobs`). So there is no verdict in the solution's reach to forge.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_ring.errors import UserError
from megatron_ring.rewards.checkers import checker_problem
from megatron_ring.rewards.code_compare import outputs_agree, values_agree
from megatron_ring.rewards.code_formats import CodeTests, read_tests
from megatron_ring.rewards.code_unit import MODULES
from megatron_ring.rewards.interface import WORKERS_VARIABLE, Reward, ScoreRequest
from megatron_ring.rewards.sandbox import RunResult, guest_values
from megatron_ring.rewards.sandbox.images import ALIASES, PYTHON_LIMITS, image_for
from megatron_ring.rewards.sandbox.runner import CodeRunner, CompileError
from megatron_ring.rewards.sandbox.side_by_side import first_problem

CORRECT = Reward(1.0, "correct")
MAX_SOURCE = 1 << 18
MAX_PARALLEL = 4

# What a block may hold beside a program: what it prints, how it is run, its input.
_NO_PROGRAMS = frozenset({
    "text", "txt", "plaintext", "plain", "output", "out", "stdout", "console", "bash", "sh", "shell", "zsh", "cmd",
    "powershell", "terminal", "input", "stdin", "json", "yaml", "xml", "html", "css", "csv", "markdown", "md", "diff",
    "math", "latex", "tex", "makefile", "dockerfile", "toml", "ini", "log", "traceback", "pseudocode",
})  # fmt: skip
_LANGUAGE = re.compile(r"\{?\s*\.?([A-Za-z][\w+#]*)")

_FENCE = re.compile(r"^([ \t]*)(`{3,}|~{3,})[ \t]*([^\n`]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Solution:
    """A code block and the language its fence names; `language` is None where it names none."""

    source: str
    language: str | None


def extract_solution(response: str, language: str | None = None) -> Solution:
    """The program of a response: its last complete fenced block that holds one; without any fence the whole response.

    Of blocks that name a programming language the last one counts, of `language` where there is one. Only where there is
    none does a block without a name count. Blocks of output, commands or data are passed over. A block that is left open,
    as in a response cut by its length limit, does not count.
    """
    blocks = list(_blocks(response))
    if not blocks:
        return Solution("" if _FENCE.search(response) else response, None)
    named = [block for block in blocks if block.language in ALIASES]
    wanted = [block for block in named if language and ALIASES[str(block.language)] == ALIASES.get(language.lower())]
    others = [block for block in blocks if block.language not in _NO_PROGRAMS]
    return (wanted or named or others or [Solution("", None)])[-1]


def _blocks(response: str) -> Iterator[Solution]:
    """Complete fenced blocks that hold anything, in order."""
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(response):
        if opened is None:
            opened = fence
        elif fence[2].startswith(opened[2]) and not fence[3].strip():
            block = response[opened.end() + 1 : fence.start()]
            if opened[1]:  # a fence in a list: what it holds is indented like it
                block = re.sub(rf"^[ \t]{{1,{min(len(opened[1]), 40)}}}", "", block, flags=re.MULTILINE)
            word = _LANGUAGE.match(opened[3])
            if word and word[1].lower() in ("md", "markdown"):
                yield from _blocks(block)
            elif block.strip():
                yield Solution(block, word[1].lower() if word else None)
            opened = None


def score(request: ScoreRequest) -> Reward:
    """Score one response; the answer is a reference that `code_formats.read_tests` understands.

    Raises:
        UserError: there is no working sandbox.
    """
    return judge(request.response, request.answer, _shared_runner())


def prepare() -> None:
    """Start the sandbox, so that what is missing is said before the first solution.

    Raises:
        UserError: there is no working sandbox.
    """
    judge("print(input())", {"tests": [{"input": "1", "output": "1"}]}, _shared_runner())


def judge(response: str, answer: object, runner: CodeRunner, parallel: int | None = None) -> Reward:
    """`score` with a runner of the caller's, at most `parallel` tests at a time (default: the processors' fair share)."""
    parallel = parallel or _fair_share()
    try:
        tests = read_tests(answer)
    except UserError as error:
        return Reward(0.0, str(error))
    solution = extract_solution(response, tests.language)
    if not solution.source.strip():
        return Reward(0.0, "no code in the response")
    if len(solution.source) > MAX_SOURCE:
        return Reward(0.0, f"the code has {len(solution.source)} characters, more than {MAX_SOURCE}")
    named = tests.language or solution.language or "python"
    if named.lower() not in ALIASES:
        # Models put `text` or a made-up word on a fence as well; the language is Python unless a known one is named.
        named = "python"
    language = ALIASES[named.lower()]
    if tests.kind == "unit":
        return _judge_unit(solution, tests, runner)
    if tests.kind == "function":
        return _first_failure(tests, lambda index: _function_problem(solution, tests, index, runner), parallel)
    if language == "python":
        return _first_failure(tests, lambda index: _script_problem(solution, tests, index, runner), parallel)
    try:
        image_for(language)
    except UserError as error:
        if tests.language:
            raise
        return Reward(0.0, str(error))  # the response's own choice of language must not end a run
    try:
        with runner.program(language, solution.source) as program:
            return _first_failure(
                tests,
                lambda index: _output_problem(program.run(_stdin(tests, index), tests.seconds), tests, index, runner),
                parallel,
            )
    except CompileError as error:
        return Reward(0.0, f"does not compile: {error}")


def _first_failure(tests: CodeTests, problem_of: Callable[[int], str | None], parallel: int) -> Reward:
    """Run tests side by side; the first failure to come ends the others."""
    found = first_problem(problem_of, len(tests.cases), parallel)
    return CORRECT if found is None else Reward(0.0, f"test {found[0] + 1} of {len(tests.cases)}: {found[1]}")


def _script_problem(solution: Solution, tests: CodeTests, index: int, runner: CodeRunner) -> str | None:
    limits = PYTHON_LIMITS.within(tests.seconds)
    stdin = _stdin(tests, index)
    fields = {"source": solution.source, "setup": tests.setup, "stdin_bytes": len(stdin)}
    result = runner.python("script", fields, limits, stdin)
    return _output_problem(result, tests, index, runner)


def _output_problem(result: RunResult, tests: CodeTests, index: int, runner: CodeRunner) -> str | None:
    if not result.ok:
        return _ended(result)
    if tests.checker is not None:
        wanted = str(tests.cases[index].expected).encode("utf-8", "replace")
        return checker_problem(tests.checker, _stdin(tests, index), wanted, result.stdout, runner)
    given = result.stdout.decode("utf-8", "replace")
    expected = tests.cases[index].expected
    return None if outputs_agree(expected, given) else f"printed {_short(given)}, expected {_short(expected)}"


def _function_problem(solution: Solution, tests: CodeTests, index: int, runner: CodeRunner) -> str | None:
    case = tests.cases[index]
    call = guest_values.dumps({"name": tests.name, "args": case.given, "kwargs": {}})
    limits = PYTHON_LIMITS.within(tests.seconds)
    result = runner.python("serve", {"source": solution.source, "setup": tests.setup}, limits, call)
    line, complete, _ = result.stdout.partition(b"\n")
    if not complete:
        return _ended(result) if result.reason else "the function ended the program"
    try:
        reply = guest_values.loads(line)
        if "error" in reply:
            return f"{reply['error']}: {reply.get('message')}"[:200]
        given = reply["value"]
        agrees = values_agree(case.expected, given)
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError, OverflowError):
        return "returned no plain value"
    return None if agrees else f"returned {_shown(given)}, expected {_shown(case.expected)}"


def _judge_unit(solution: Solution, tests: CodeTests, runner: CodeRunner) -> Reward:
    plan = tests.plan
    assert plan is not None  # read with the tests
    fields = {
        "setup": tests.setup, "test": tests.test, "entry_point": tests.name,
        "names": plan.names, "functions": plan.functions, "classes": plan.classes, "modules": MODULES,
    }  # fmt: skip
    candidate = {"setup": tests.setup, "source": solution.source}
    passed, problem = runner.unit_tests(candidate, fields, PYTHON_LIMITS.within(tests.seconds))
    return CORRECT if passed else Reward(0.0, _one_line(problem))


def _ended(result: RunResult) -> str:
    """How a run failed, with the last line of its error output."""
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"{result.reason} ({_one_line(lines[-1])[:120]})" if lines else result.reason


def _stdin(tests: CodeTests, index: int) -> bytes:
    return str(tests.cases[index].given).encode("utf-8", "replace")


def _shown(value: object) -> str:
    try:
        return _cut(repr(value))
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        return "a value too large to show"


def _short(text: str) -> str:
    return repr(_cut(text.strip()))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _fair_share() -> int:
    """Tests at a time, so that all workers together do not run more than there are processors."""
    return max(1, min(MAX_PARALLEL, (os.cpu_count() or 1) // int(os.environ.get(WORKERS_VARIABLE, "1"))))


@functools.cache
def _shared_runner() -> CodeRunner:
    """One warm interpreter for this process; it ends with it."""
    runner = CodeRunner()
    atexit.register(runner.close)
    return runner
