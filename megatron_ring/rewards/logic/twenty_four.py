r"""The 24 game: four numbers, each used exactly once, make 24. Verified as Countdown, in the last `\boxed{...}`.

Harder levels are rarer kinds of numbers: those that need a division, or a fraction on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from megatron_ring.rewards.logic import countdown
from megatron_ring.rewards.logic.expression import combine
from megatron_ring.rewards.logic.game import Game, MalformedInstance, boxed, boxed_score, generator_of, make_problem

NAME = "twenty_four"
TARGET = 24
_Numbers = tuple[int, ...]


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """A solvable problem, drawn until the numbers are of the level's kind."""
    rng = generator_of(NAME, seed, difficulty)
    largest, fits = LEVELS[difficulty]
    while True:
        numbers = tuple(sorted(rng.randint(1, largest) for _ in range(4)))
        if fits(numbers):
            break
    answer = {"numbers": list(numbers)}
    witness = solve(answer, 1)[0]
    prompt = (
        f"Play the 24 game with {', '.join(map(str, numbers))}: write an expression whose value is exactly 24, using each "
        f"of the four numbers exactly once. A number that is listed twice is used twice. {countdown.RULES}\n"
        "Give the expression alone in \\boxed{}, of the form \\boxed{(a+b)*c-d}, with numbers for letters."
    )
    return make_problem(NAME, seed, difficulty, prompt, answer, witness)


def read_twenty_four(answer: Any) -> countdown.Countdown:
    """Check an instance. Raises `MalformedInstance`."""
    if not isinstance(answer, dict):
        raise MalformedInstance("it must be an object with 'numbers'")
    puzzle = countdown.read_countdown({"numbers": answer.get("numbers"), "target": TARGET, "use_all": True})
    if len(puzzle.numbers) != 4:
        raise MalformedInstance("'numbers' must be a list of 4 integers")
    return puzzle


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` expressions, by exhaustive search."""
    puzzle = read_twenty_four(answer)
    found = countdown.solve({"numbers": list(puzzle.numbers), "target": TARGET, "use_all": True}, limit)
    return [text[1:-1] for text in found]  # the outer brackets


@lru_cache(maxsize=10_000)  # few sets of small numbers exist, and the generator meets them again and again
def reachable(numbers: _Numbers, operators: str, fractions: bool) -> bool:
    """Whether 24 can be made with these operators; without `fractions` every value on the way must be whole."""
    start = tuple(sorted(map(Fraction, numbers)))
    stack, seen = [start], {start}
    while stack:
        values = stack.pop()
        if len(values) == 1 and values[0] == TARGET:
            return True
        for i, left in enumerate(values):
            for j, right in enumerate(values):
                for operator in operators if i != j else "":
                    if operator == "/" and (right == 0 or not (fractions or (left / right).denominator == 1)):
                        continue
                    rest = [value for k, value in enumerate(values) if k not in (i, j)]
                    joined = tuple(sorted([*rest, combine(left, operator, right)]))
                    if joined not in seen:
                        seen.add(joined)
                        stack.append(joined)
    return False


def _plain(numbers: _Numbers) -> bool:
    return reachable(numbers, "+-*", False)


def _solvable(numbers: _Numbers) -> bool:
    return _plain(numbers) or reachable(numbers, "+-*/", True)


def _needs_division(numbers: _Numbers) -> bool:
    return not _plain(numbers) and reachable(numbers, "+-*/", True)


def _additive_or_one_product(numbers: _Numbers) -> bool:
    return reachable(numbers, "+-", False) or (1 in numbers and _plain(numbers))


# Difficulty -> (largest number, which numbers are of this kind). Level 3 is the classic game, with 1362 sets of numbers.
LEVELS: dict[int, tuple[int, Callable[[_Numbers], bool]]] = {
    1: (13, _additive_or_one_product),
    2: (13, _plain),
    3: (13, _solvable),
    4: (20, _needs_division),
    5: (40, _needs_division),
}

GAME = Game(NAME, generate, boxed_score(read_twenty_four, countdown.check), solve, boxed, read_twenty_four)
