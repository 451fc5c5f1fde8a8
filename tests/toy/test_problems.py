"""The problems are right, distinct, disjoint between splits and reproducible."""

from __future__ import annotations

import itertools
import math
import random
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.toy.problems import FAMILIES, KNOBS, ProblemMix, generate, make_splits

SECONDS = {"s": 1, "min": 60, "h": 3600, "days": 86_400, "weeks": 604_800}


def solve(prompt: str) -> str:
    """An answer worked out from the prompt text alone, by other means than the generator's."""
    if match := re.fullmatch(r"Compute ([\d+-]+)\.", prompt):
        return str(sum(int(term) for term in re.findall(r"[+-]?\d+", match[1])))
    if match := re.fullmatch(r"Solve (\d+)x([+-]\d+)=(\d+)\.", prompt):
        a, b, c = map(int, match.groups())
        solutions = [x for x in range(2000) if a * x + b == c]
        assert len(solutions) == 1
        return str(solutions[0])
    if match := re.fullmatch(r"Find (\d+) div (\d+)\.", prompt):
        return str(int(match[1]) // int(match[2]))
    if match := re.fullmatch(r"Find gcd\((\d+),(\d+)\)\.", prompt):
        return str(math.gcd(int(match[1]), int(match[2])))
    if match := re.fullmatch(r"How far at (\d+) (\w+)/(\w+) in (\d+) (\w+)\?", prompt):
        assert match[3] == match[5]
        return f"{int(match[1]) * int(match[4])} {match[2]}"
    match = re.fullmatch(r"Convert (\d+) (\w+) (\d+) (\w+) to (\w+)\.", prompt)
    assert match and match[4] == match[5]
    seconds = int(match[1]) * SECONDS[match[2]] + int(match[3]) * SECONDS[match[4]]
    return f"{Fraction(seconds, SECONDS[match[5]])} {match[5]}"


def evaluate(expression: str, x: str) -> int:
    """The value of a step's side; 7x means 7 times the solution."""
    assert re.fullmatch(r"[\dx+*/-]+", expression)
    written = re.sub(r"(?<=\d)x", "*x", expression)
    value = Fraction(eval(written, {"x": Fraction(x)}))
    assert value.denominator == 1
    return int(value)


@st.composite
def mixes(draw: st.DrawFn) -> ProblemMix:
    difficulty = {
        name: draw(st.integers(low, min(high, 4 * default)))
        for name, (default, low, high) in KNOBS.items()
        if draw(st.booleans())
    }
    return ProblemMix(difficulty=difficulty)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 10**9), family=st.sampled_from(sorted(FAMILIES)), mix=st.one_of(st.just(ProblemMix()), mixes()))
def test_solutions_are_right(seed: int, family: str, mix: ProblemMix) -> None:
    problem = generate(random.Random(seed), family, mix)
    assert problem.answer == solve(problem.prompt)
    *steps, last = problem.response.split("\n")
    assert last == f"\\boxed{{{problem.answer}}}" and steps
    for step in steps:
        values = {evaluate(side, problem.answer.split()[0]) for side in step.split("=")}
        assert len(values) == 1, step
        assert values.pop() >= 0
    assert problem.domain == ("science" if family == "units" else "math")
    assert problem.id.startswith(f"{family}-")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_holds_thousands_of_prompts_and_short_responses(family: str) -> None:
    rng = random.Random(7)
    problems = [generate(rng, family, ProblemMix()) for _ in range(60_000)]
    assert len({problem.prompt for problem in problems}) > 4_000
    assert max(len(problem.response) for problem in problems) <= 60
    answers = [problem.answer for problem in problems]
    most_common = max(answers.count(answer) for answer in set(answers[:200]))
    assert most_common < 0.2 * len(answers), "one answer is a safe guess"


def test_splits_are_disjoint_balanced_and_shuffled() -> None:
    splits = make_splits(3, train=801, validation=100, heldout=102, rl=400)
    parts = [splits.train, splits.validation, splits.heldout, splits.rl]
    assert [len(part) for part in parts] == [801, 100, 102, 400]
    prompts = [problem.prompt for part in parts for problem in part]
    assert len(set(prompts)) == len(prompts)
    assert len({problem.id for part in parts for problem in part}) == len(prompts)
    for part in parts:
        counts = [sum(problem.family == family for problem in part) for family in FAMILIES]
        assert max(counts) - min(counts) <= 1
        longest_run = max(len(list(group)) for _, group in itertools.groupby(part, key=lambda problem: problem.family))
        assert longest_run < 12


def test_splits_depend_on_the_seed_alone() -> None:
    assert make_splits(3, 40, 20, 20, 20) == make_splits(3, 40, 20, 20, 20)
    assert make_splits(3, 40, 20, 20, 20) != make_splits(4, 40, 20, 20, 20)


def test_splits_share_one_distribution_when_a_family_is_nearly_used_up() -> None:
    splits = make_splits(1, train=2500, validation=400, heldout=400, rl=500, mix=ProblemMix(families=("division",)))
    shares = [
        sum("gcd" in problem.prompt for problem in part) / len(part)
        for part in (splits.train, splits.validation, splits.heldout, splits.rl)
    ]
    assert max(shares) - min(shares) < 0.08 and min(shares) > 0.05


def test_difficulty_reaches_the_problems() -> None:
    mix = ProblemMix(families=("arithmetic",), difficulty={"arithmetic.digits": 3, "arithmetic.terms": 2})
    for problem in make_splits(0, 100, 0, 0, mix=mix).train:
        assert re.fullmatch(r"Compute \d{3}[+-]\d{3}\.", problem.prompt)


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        (lambda: ProblemMix(families=("algebra",)), "unknown problem family 'algebra'"),
        (lambda: ProblemMix(families=()), "name at least one"),
        (lambda: ProblemMix(difficulty={"arithmetic.size": 3}), "unknown difficulty"),
        (lambda: ProblemMix(difficulty={"units.time": 1}), "from 2 to 99"),
        (
            lambda: make_splits(
                0,
                300,
                0,
                0,
                mix=ProblemMix(("division",), {"division.gcd": 20, "division.dividend": 20, "division.divisor": 3}),
            ),
            "too few distinct",
        ),
        (lambda: make_splits(0, -1, 0, 0), "use 0 or more"),
    ],
)
def test_mistakes_are_named(mix, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mix()


@pytest.mark.parametrize("module", ["toy.problems", "toy.code_problems", "data.files"])
def test_imports_stay_light(module: str) -> None:
    code = f"import sys, megatron_ring.{module}; print({{'torch', 'transformers', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
