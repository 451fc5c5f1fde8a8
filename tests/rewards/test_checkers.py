"""Checkers of problems with several right outputs: what they accept, and what a hostile solution or checker can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from megatron_ring.curation.code_tests import cleaned_tests
from megatron_ring.curation.options import Clean
from megatron_ring.errors import UserError
from megatron_ring.rewards.checkers import MAX_CHECKER
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.code_formats import read_tests
from megatron_ring.rewards.codeforces import codeforces_answer
from megatron_ring.rewards.interface import Reward
from megatron_ring.rewards.sandbox.runner import CodeRunner

# Two numbers that add up to n, in the form of the data set.
CHECKER = """
import sys

def main(input_path, output_path, submission_path):
    n = int(open(input_path).read())
    expected = list(map(int, open(output_path).read().split()))
    assert sum(expected) == n
    try:
        a, b = map(int, open(submission_path).read().split())
    except ValueError:
        print(0)
        return
    print(1 if a + b == n else 0)

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3])
"""
ROW: dict[str, Any] = {"time_limit": 1.0, "generated_checker": CHECKER, "input_mode": "stdio", "interaction_format": None}
TESTS = [{"input": "7\n", "output": "3 4\n"}, {"input": "0\n", "output": "0 0\n"}]


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as runner:
        yield runner


def judged(runner: CodeRunner, source: str, language: str = "python", **row: Any) -> Reward:
    return judge(f"```{language}\n{source}\n```", codeforces_answer({**ROW, **row}, TESTS), runner)


def test_every_right_answer_is_accepted(runner: CodeRunner) -> None:
    for source in ("n = int(input()); print(n, 0)", "n = int(input()); print(3, n - 3)", "print(-1, int(input()) + 1)"):
        assert judged(runner, source).value == 1, source
    wrong = judged(runner, "print(3, 4)")
    assert wrong.value == 0 and wrong.reason == "test 2 of 2: the checker does not accept it (it said '0')"
    assert "printed '7 0', expected '3 4'" in judged(runner, "print(int(input()), 0)", generated_checker=None).reason


@pytest.mark.slow
def test_compiled_solutions_are_checked_likewise(runner: CodeRunner) -> None:
    source = "#include <iostream>\nint main() { long long n; std::cin >> n; std::cout << n + %d << ' ' << -1; }"
    assert judged(runner, source % 1, "cpp").value == 1 and judged(runner, source % 2, "cpp").value == 0


def test_a_solution_cannot_speak_for_the_checker(runner: CodeRunner) -> None:
    """What it prints or leaves behind is in a file of the checker's own run; a test that fails never gets there."""
    for source in (
        "print(1)",
        "open('solution_output.txt', 'w').write('7 0'); open('checker.py', 'w').write('print(1)'); print('x')",
        "import sys; sys.argv[0] = 'checker.py'; print('1\\n1\\n1')",
        "import os; os._exit(3)",
        "print('1' * 100_000)",
    ):
        assert judged(runner, source).value == 0, source


@pytest.mark.parametrize(
    ("checker", "said"),
    [
        ("raise SystemExit('no')", "the checker failed"),
        ("print('yes')", "it said 'yes'"),
        ("pass", "it said ''"),
        ("print(10)", "it said '10'"),
        ("import os; os.kill(1, 9); os._exit(1)", "the checker failed"),
        ("import socket; socket.create_connection(('127.0.0.1', 22)); print(1)", "the checker failed"),
        ("open('/etc/passwd').read(); print(1)", "the checker failed"),
        ("print(1 if open('input.txt').read() == 'x' else 0)", "it said '0'"),
    ],
)
def test_a_checker_runs_in_the_sandbox_and_accepts_by_1_alone(runner: CodeRunner, checker: str, said: str) -> None:
    found = judged(runner, "n = int(input()); print(n, 0)", generated_checker=checker)
    assert found.value == 0 and said in found.reason, found.reason


def test_the_files_hold_exactly_what_was_given_and_printed(runner: CodeRunner) -> None:
    """Whatever is in them: they are taken apart by their sizes."""
    shown = "import sys; print(1 if [open(p, 'rb').read() for p in sys.argv[1:]] == {!r} else 0)"
    tests = [{"input": "é\n\x001\r\n", "output": ""}, {"input": "", "output": "x\n"}]
    for test in tests:
        wanted = [test["input"].encode(), test["output"].encode(), b"\xff\x00 out\n"]
        answer = codeforces_answer({**ROW, "generated_checker": shown.format(wanted)}, [test, {"input": "", "output": "y"}])
        response = "```python\nimport sys; sys.stdout.buffer.write(b'\\xff\\x00 out\\n')\n```"
        assert judge(response, answer, runner).reason == "test 2 of 2: the checker does not accept it (it said '0')"


def test_references_with_a_checker() -> None:
    answer = codeforces_answer(ROW, TESTS)
    assert answer["time_limit"] == 2.0 and read_tests(answer).checker == CHECKER
    cleaned, _ = cleaned_tests(answer, Clean())
    assert cleaned["checker"] == CHECKER and cleaned["time_limit"] == 2.0
    assert codeforces_answer({**ROW, "generated_checker": " \n"}, TESTS).keys() == {"tests", "time_limit"}
    for wrong in (1, "(", "#" * (MAX_CHECKER + 1), "(" * 100_000):
        with pytest.raises(UserError, match="the checker is no"):
            read_tests({"tests": TESTS, "checker": wrong})
