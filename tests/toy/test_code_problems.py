"""The programming problems: their programs pass their tests in the sandbox, guesses do not, and tests follow the prompt."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megatron_ring.rewards.code import judge
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.runner import CodeRunner
from megatron_ring.toy.code_problems import guessed
from megatron_ring.toy.problems import ProblemMix, generate, make_splits

CODE = ProblemMix(families=("code",))
sandboxed = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as shared:
        yield shared


def function_of(prompt: str) -> Callable[[Any], Any]:
    """What the prompt asks for, worked out from its text alone."""
    if match := re.fullmatch(r"Write f\(x\): f\((\d+)\)=(\d+), f\((\d+)\)=(\d+)\.", prompt):
        first, at_first, second, at_second = map(int, match.groups())
        slope = (at_second - at_first) // (second - first)
        return lambda x: at_first + slope * (x - first)
    match = re.fullmatch(r"Write f\(v\): (add up|list) (.*?)numbers (above|below|divisible by) (\d+)\.", prompt)
    assert match
    verb, what, which, bound = match[1], match[2], match[3], int(match[4])

    def function(v: list[int]) -> Any:
        keeps = {"above": lambda n: n - bound > 0, "below": lambda n: n - bound < 0}
        keeps["divisible by"] = lambda n: n % bound == 0
        kept = list(filter(keeps[which], v))
        if what:
            kept = [n**2 if what == "squares of " else n * int(what.split()[0]) for n in kept]
        return kept if verb == "list" else sum(kept)

    return function


def test_tests_are_what_the_prompt_asks_for() -> None:
    for problem in make_splits(5, train=1500, validation=0, heldout=0, mix=CODE).train:
        function = function_of(problem.prompt)
        assert problem.domain == problem.family == "code"
        assert problem.answer["tests"], problem
        for test in problem.answer["tests"]:
            assert function(*test["args"]) == test["expected"], problem


def test_working_is_right_and_short() -> None:
    rng = random.Random(8)
    problems = [generate(rng, "code", ProblemMix()) for _ in range(40_000)]
    assert len({problem.prompt for problem in problems}) > 4_000
    assert max(len(problem.response) for problem in problems) <= 100
    for problem in problems[:2000]:
        for step in problem.response[: problem.response.index("```")].split():
            assert re.fullmatch(r"[\d+*=-]+", step)
            assert len({eval(side) for side in step.split("=")}) == 1, step


@sandboxed
def test_programs_pass_and_guesses_fail(runner: CodeRunner) -> None:
    rng = random.Random(3)
    for problem in make_splits(2, train=60, validation=0, heldout=0, mix=CODE).train:
        assert judge(problem.response, problem.answer, runner).value == 1, problem
        guess = guessed(problem.response[problem.response.index("```") :], rng)
        assert guess not in problem.response
        # Another number that is nowhere divisible, say, is as good: rare, not seen here.
        assert judge(guess, problem.answer, runner).value == 0, (problem, guess)
