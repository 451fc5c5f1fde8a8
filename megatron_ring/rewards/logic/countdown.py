r"""Countdown: reach a target with + - * / and the given numbers, each used exactly once (or at most once).

The answer is an expression in the last `\boxed{...}`. Any expression with the right numbers and the right exact value is
accepted. The same machinery serves the 24 game.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_ring.rewards.logic.expression import combine, parse_expression, value_of
from megatron_ring.rewards.logic.game import (
    Game,
    MalformedInstance,
    Violation,
    boxed,
    boxed_score,
    field_of,
    generator_of,
    make_problem,
    whole_number,
)

NAME = "countdown"
MAX_NUMBERS = 12
MAX_VALUE = 1_000_000


@dataclass(frozen=True, slots=True)
class Countdown:
    """Numbers, the target, and whether every number has to be used."""

    numbers: tuple[int, ...]
    target: int
    use_all: bool


@dataclass(frozen=True, slots=True)
class Level:
    """How many numbers, how large they and the target may be, and how many numbers the witness uses at least."""

    count: int
    largest: int
    largest_target: int
    fewest_used: int


LEVELS = {
    1: Level(3, 20, 100, 3),
    2: Level(4, 25, 100, 3),
    3: Level(4, 100, 500, 4),
    4: Level(5, 100, 999, 4),
    5: Level(6, 100, 999, 5),
}

RULES = """\
The operations are +, -, * and / (exact division, fractions are allowed on the way) and brackets may be used freely. Do not \
join digits to new numbers, and use no other symbols: no unary minus, no powers, no equals sign."""


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """A problem with a witness. Numbers are sorted, so that two orders of the same numbers are one problem."""
    rng = generator_of(NAME, seed, difficulty)
    level = LEVELS[difficulty]
    use_all = rng.random() < 0.5
    while True:
        numbers = tuple(sorted(rng.randint(1, level.largest) for _ in range(level.count)))
        used = level.count if use_all else rng.randint(level.fewest_used, level.count)
        witness, target = _random_expression(rng, rng.sample(numbers, used), 20 * level.largest_target)
        puzzle = Countdown(numbers, target, use_all)
        if 10 <= target <= level.largest_target and (use_all or not _takes_two(puzzle)):
            break
    how_often = "every number exactly once" if use_all else "each number at most once (you need not use all of them)"
    prompt = (
        f"Use the numbers {', '.join(map(str, numbers))} to make {target}: write an expression whose value is exactly "
        f"{target}, using {how_often}. A number that is listed twice may be used twice. {RULES}\n"
        "Give the expression alone in \\boxed{}, of the form \\boxed{(a+b)*c-d}, with numbers for letters."
    )
    answer = {"numbers": list(numbers), "target": target, "use_all": use_all}
    return make_problem(NAME, seed, difficulty, prompt, answer, witness)


def read_countdown(answer: Any) -> Countdown:
    """Check an instance. Raises `MalformedInstance`."""
    numbers, use_all = field_of(answer, "numbers"), field_of(answer, "use_all")
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_NUMBERS:
        raise MalformedInstance(f"'numbers' must be a list of 1 to {MAX_NUMBERS} integers")
    if not isinstance(use_all, bool):
        raise MalformedInstance("'use_all' must be true or false")
    checked = tuple(whole_number(number, "numbers", 0, MAX_VALUE) for number in numbers)
    target = whole_number(field_of(answer, "target"), "target", -MAX_VALUE, MAX_VALUE)
    return Countdown(checked, target, use_all)


def check(puzzle: Countdown, text: str) -> None:
    """Raise `Violation` unless the text is an expression with the right numbers and value."""
    expression = parse_expression(text)
    used, given = Counter(expression.numbers), Counter(puzzle.numbers)
    for number, times in used.items():
        if number not in given:
            raise Violation(f"{number} is not one of the given numbers")
        if times > given[number]:
            raise Violation(f"{number} is used {times} times and given {given[number]} times")
    if puzzle.use_all and used != given:
        raise Violation(f"not every number is used: {min((given - used).elements())} is left")
    value = value_of(expression)
    if value != puzzle.target:
        raise Violation(f"the value is {value}, not {puzzle.target}")


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` expressions, by exhaustive search over pairs; practical up to five numbers."""
    puzzle = read_countdown(answer)
    found: dict[str, None] = {}
    start = tuple(sorted((Fraction(number), str(number)) for number in puzzle.numbers))
    for text in _search(start, puzzle, set()):
        found[text] = None
        if len(found) == limit:
            break
    return list(found)


_Terms = tuple[tuple[Fraction, str], ...]


def _search(terms: _Terms, puzzle: Countdown, seen: set[tuple[Fraction, ...]]) -> Iterator[str]:
    """Join any two terms to one until one is left. The same values are searched once, whatever their expressions."""
    values = tuple(value for value, _ in terms)
    for value, text in terms:
        if value == puzzle.target and (len(terms) == 1 or not puzzle.use_all):
            yield text
    if values in seen:
        return
    seen.add(values)
    for i in range(len(terms)):
        for j in range(len(terms)):
            if i == j:
                continue
            rest = tuple(term for k, term in enumerate(terms) if k not in (i, j))
            (left, left_text), (right, right_text) = terms[i], terms[j]
            for operator in "+-*/":
                if (operator in "+*" and i > j) or (operator == "/" and right == 0):
                    continue
                joined = (combine(left, operator, right), f"({left_text}{operator}{right_text})")
                yield from _search(tuple(sorted((*rest, joined))), puzzle, seen)


def _takes_two(puzzle: Countdown) -> bool:
    """Whether one or two of the numbers reach the target already, which would make a hard problem easy."""
    numbers = puzzle.numbers
    if puzzle.target in numbers:
        return True
    pairs = ((a, b) for i, a in enumerate(numbers) for j, b in enumerate(numbers) if i != j)
    return any(puzzle.target in (a + b, a - b, a * b) or a == puzzle.target * b for a, b in pairs)


def _random_expression(rng: random.Random, numbers: Sequence[int], largest: int) -> tuple[str, int]:
    """Join random pairs of terms to one. Values on the way are whole, above 0 and at most `largest`."""
    terms = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        rng.shuffle(terms)
        (a, a_text), (b, b_text) = sorted((terms.pop(), terms.pop()), key=lambda term: -term[0])
        choices = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if a % b == 0 else 0}
        # Steps that change nothing make poor problems: x-x, x*1, x/1; and a result equal to an operand hides a number.
        good = [mark for mark, value in choices.items() if 0 < value <= largest and value not in (a, b)]
        mark = rng.choice(good or ["+"])
        terms.append((choices[mark], f"({a_text}{mark}{b_text})"))
    value, text = terms[0]
    return text[1:-1] if text.startswith("(") else text, value


GAME = Game(NAME, generate, boxed_score(read_countdown, check), solve, boxed, read_countdown)
