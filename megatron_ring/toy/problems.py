"""Families of small reasoning problems whose answers can be checked: the data of the tiny runs.

Every solution is worked in explicit one-line steps and ends in `\\boxed{ANSWER}`, or in a code block in the family `code`,
short enough for a model of about a million parameters that reads numbers digit by digit. The text is templated on
purpose: what is to be learnt is the arithmetic, not the language.

At the default knobs each family holds more than 4,000 distinct prompts.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.toy.code_problems import draw_code
from megatron_ring.toy.worked_sums import places, worked


@dataclass(frozen=True)
class Problem:
    """One problem: `prompt` is asked, `response` is a model solution that ends in `\\boxed{answer}` or a code block,
    `answer` is what the verifier of `domain` needs: text, or a function's tests.

    `id` is a hash of the prompt, so the same problem carries the same id under any seed.
    """

    id: str
    family: str
    domain: str
    prompt: str
    response: str
    answer: Any


# Knob -> (default, smallest, largest). All are inclusive upper bounds of what is drawn, except `arithmetic.digits`.
KNOBS: Mapping[str, tuple[int, int, int]] = {
    "arithmetic.digits": (1, 1, 6),  # digits of every term
    "arithmetic.terms": (5, 2, 8),  # terms in a chain: 2 up to this many
    "linear.coefficient": (9, 2, 99),  # a in a*x+b=c, from 2
    "linear.solution": (20, 2, 999),  # x, from 2
    "linear.constant": (20, 1, 999),  # |b|, from 1
    "division.dividend": (999, 20, 99_999),  # n in n div d, from 20
    "division.divisor": (6, 3, 99),  # d, from 3
    "division.gcd": (99, 20, 9_999),  # larger number of a gcd, from 10
    "division.steps": (2, 1, 12),  # Euclid steps of a gcd
    "units.speed": (99, 11, 999),  # speed, from 11
    "units.time": (5, 2, 99),  # duration, from 2
    "units.whole": (20, 2, 999),  # whole part of a mixed duration such as 3 h 45 min, from 2
    "code.slope": (9, 2, 99),  # a in the function a*x+b, from 2
    "code.offset": (20, 1, 999),  # |b|, from 1
    "code.bound": (40, 2, 999),  # what a list's numbers are compared with, from 2
}


@dataclass(frozen=True)
class ProblemMix:
    """Which families are drawn, in equal shares, and how hard they are.

    `difficulty` overrides the defaults of `KNOBS` by name, for example `{"arithmetic.terms": 4}`. An unknown knob or
    family, or a value out of range, raises `UserError`.
    """

    families: tuple[str, ...] = ("arithmetic", "linear", "division", "units")
    difficulty: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.families or len(set(self.families)) != len(self.families):
            raise UserError(f"families {list(self.families)}: name at least one, each once")
        for family in self.families:
            if family not in DOMAINS:
                raise UserError(f"unknown problem family {family!r}: use one of {', '.join(DOMAINS)}")
        for name, value in self.difficulty.items():
            if name not in KNOBS:
                raise UserError(f"unknown difficulty {name!r}: use one of {', '.join(KNOBS)}")
            _, low, high = KNOBS[name]
            if not low <= value <= high:
                raise UserError(f"difficulty {name}={value}: choose a value from {low} to {high}")

    def knob(self, name: str) -> int:
        """The value of one knob: the override, or its default."""
        return self.difficulty.get(name, KNOBS[name][0])


@dataclass(frozen=True)
class Splits:
    """Four lists of problems that share no prompt text, within or between them."""

    train: list[Problem]
    validation: list[Problem]
    heldout: list[Problem]
    rl: list[Problem]


def make_splits(seed: int, train: int, validation: int, heldout: int, rl: int = 0, mix: ProblemMix | None = None) -> Splits:
    """Draw disjoint splits of the given sizes (problems), families in equal shares (within one) and shuffled.

    Every family is drawn as one pool and dealt out at random, so all splits have the same distribution even where a
    kind of problem is nearly used up. Raises `UserError` when a family has too few distinct problems.
    """
    mix = mix or ProblemMix()
    sizes = {"train": train, "validation": validation, "heldout": heldout, "rl": rl}
    for name, size in sizes.items():
        if size < 0:
            raise UserError(f"the {name} split has size {size}: use 0 or more problems")
    splits: dict[str, list[Problem]] = {name: [] for name in sizes}
    seen: set[str] = set()
    for index, family in enumerate(mix.families):
        rng = random.Random(f"{seed}/{family}")
        shares = {name: size // len(mix.families) + (index < size % len(mix.families)) for name, size in sizes.items()}
        pool = _draw_distinct(rng, family, sum(shares.values()), mix, seen)
        rng.shuffle(pool)
        for name, share in shares.items():
            splits[name] += pool[:share]
            del pool[:share]
    for name, problems in splits.items():
        random.Random(f"{seed}/{name}").shuffle(problems)
    return Splits(**splits)


def generate(rng: random.Random, family: str, mix: ProblemMix) -> Problem:
    """Draw one problem of a family; the same generator state gives the same problem."""
    answer: Any
    if family == "code":
        prompt, steps, ending, answer = draw_code(rng, mix.knob)
    else:
        prompt, steps, answer = FAMILIES[family](rng, mix)
        ending = f"\\boxed{{{answer}}}"
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
    return Problem(f"{family}-{digest}", family, DOMAINS[family], prompt, "\n".join([*steps, ending]), answer)


def _draw_distinct(rng: random.Random, family: str, count: int, mix: ProblemMix, seen: set[str]) -> list[Problem]:
    """Draw `count` problems whose prompts are not in `seen`, and add them to it."""
    problems: list[Problem] = []
    duplicates_in_a_row = 0
    while len(problems) < count:
        problem = generate(rng, family, mix)
        if problem.prompt in seen:
            duplicates_in_a_row += 1
            if duplicates_in_a_row == 2_000:
                raise UserError(
                    f"the family {family!r} has too few distinct problems at this difficulty ({len(problems)} of "
                    f"{count} drawn): ask for fewer, or raise one of its difficulty knobs"
                )
            continue
        duplicates_in_a_row = 0
        seen.add(problem.prompt)
        problems.append(problem)
    return problems


# A family turns (generator, mix) into (prompt, solution steps, answer).
_Drawn = tuple[str, list[str], str]


def _arithmetic(rng: random.Random, mix: ProblemMix) -> _Drawn:
    """A chain of + and -, worked from the left; no running total is negative."""
    digits = mix.knob("arithmetic.digits")
    low, high = (1 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    total = rng.randint(low, high)
    expression, steps = str(total), []
    for _ in range(rng.randint(2, mix.knob("arithmetic.terms")) - 1):
        subtract = total >= low and rng.random() < 0.5
        term = rng.randint(low, min(high, total)) if subtract else rng.randint(low, high)
        sign = "-" if subtract else "+"
        result = total - term if subtract else total + term
        steps.append(worked(total, sign, term))
        expression += f"{sign}{term}"
        total = result
    return f"Compute {expression}.", steps, str(total)


def _linear(rng: random.Random, mix: ProblemMix) -> _Drawn:
    """a*x+b=c or a*x-b=c with a positive integer solution and c >= 0."""
    a = rng.randint(2, mix.knob("linear.coefficient"))
    x = rng.randint(2, mix.knob("linear.solution"))
    b = rng.randint(1, mix.knob("linear.constant"))
    if a * x >= b and rng.random() < 0.5:
        equation, undo, c = f"{a}x-{b}", "+", a * x - b
    else:
        equation, undo, c = f"{a}x+{b}", "-", a * x + b
    steps = [f"{a}x={worked(c, undo, b)}", f"x={a * x}/{a}={x}"]
    return f"Solve {equation}={c}.", steps, str(x)


def _division(rng: random.Random, mix: ProblemMix) -> _Drawn:
    """A whole quotient by long division (three in four), or a greatest common divisor by Euclid's algorithm."""
    return _gcd(rng, mix) if rng.random() < 0.25 else _quotient(rng, mix)


def _quotient(rng: random.Random, mix: ProblemMix) -> _Drawn:
    divisor = rng.randint(3, mix.knob("division.divisor"))
    dividend = rng.randint(max(20, divisor), max(mix.knob("division.dividend"), divisor))
    steps, rest, started = [], 0, False
    for digit in str(dividend):
        rest = rest * 10 + int(digit)
        started = started or rest >= divisor
        if started:
            steps.append(f"{rest}={divisor}*{rest // divisor}+{rest % divisor}")
            rest %= divisor
    return f"Find {dividend} div {divisor}.", steps, str(dividend // divisor)


def _gcd(rng: random.Random, mix: ProblemMix) -> _Drawn:
    """The divisor is drawn first: of two numbers drawn freely most are coprime, and 1 would be a safe guess."""
    largest, most_steps = mix.knob("division.gcd"), mix.knob("division.steps")
    while True:
        common = rng.randint(1, max(2, min(12, largest // 3)))
        a, b = (common * rng.randint(2, largest // common) for _ in range(2))
        a, b = max(a, b), min(a, b)
        if b < 10 or a == b:
            continue
        prompt = f"Find gcd({a},{b})."
        steps: list[str] = []
        while b and len(steps) <= most_steps:
            steps.append(f"{a}={b}*{a // b}+{a % b}")
            a, b = b, a % b
        if len(steps) <= most_steps:
            return prompt, steps, str(a)


def _units(rng: random.Random, mix: ProblemMix) -> _Drawn:
    """A number with its unit: a distance from speed and time, or a mixed duration in its smaller unit."""
    return _distance(rng, mix) if rng.random() < 0.5 else _duration(rng, mix)


def _distance(rng: random.Random, mix: ProblemMix) -> _Drawn:
    length, time = rng.choice((("km", "h"), ("m", "s"), ("m", "min"), ("cm", "s")))
    speed = rng.randint(11, mix.knob("units.speed"))
    duration = rng.randint(2, mix.knob("units.time"))
    first, *rest = places(speed)
    steps, total = [f"{first}*{duration}={first * duration}"], first * duration
    for part in rest:
        steps += [f"{part}*{duration}={part * duration}", worked(total, "+", part * duration)]
        total += part * duration
    return f"How far at {speed} {length}/{time} in {duration} {time}?", steps, f"{total} {length}"


def _duration(rng: random.Random, mix: ProblemMix) -> _Drawn:
    large, small, factor = rng.choice((("h", "min", 60), ("min", "s", 60), ("days", "h", 24), ("weeks", "days", 7)))
    whole = rng.randint(2, mix.knob("units.whole"))
    part = rng.randint(1, factor - 1)
    steps = [f"{whole}*{factor}={whole * factor}", worked(whole * factor, "+", part)]
    return f"Convert {whole} {large} {part} {small} to {small}.", steps, f"{whole * factor + part} {small}"


FAMILIES: Mapping[str, Callable[[random.Random, ProblemMix], _Drawn]] = {
    "arithmetic": _arithmetic,
    "linear": _linear,
    "division": _division,
    "units": _units,
}

# Family -> the domain whose verifier scores it. The families of FAMILIES are drawn where none is named.
DOMAINS: Mapping[str, str] = {**dict.fromkeys(FAMILIES, "math"), "units": "science", "code": "code"}
