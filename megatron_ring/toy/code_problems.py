"""Small programming problems, answered with one Python function that hidden tests call.

Two kinds in equal shares: find a*x+b from two of its values, and write as a comprehension what a sentence asks of a list.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from megatron_ring.toy.worked_sums import worked

TESTS = 2
_NUMBER = re.compile(r"\d+")
_Knob = Callable[[str], int]
# (prompt, working, code block, tests)
_Drawn = tuple[str, list[str], str, dict[str, Any]]


def draw_code(rng: random.Random, knob: _Knob) -> _Drawn:
    """One problem: prompt, working, code block, tests as the code verifier reads them. `knob` bounds what is drawn."""
    return _from_values(rng, knob) if rng.random() < 0.5 else _from_words(rng, knob)


def guessed(code: str, rng: random.Random) -> str:
    """The same code with one of its numbers replaced by another one within 9 of it."""
    number = rng.choice(list(_NUMBER.finditer(code)))
    value = int(number[0])
    other = rng.choice([near for near in range(max(1, value - 9), value + 10) if near != value])
    return f"{code[: number.start()]}{other}{code[number.end() :]}"


def _from_values(rng: random.Random, knob: _Knob) -> _Drawn:
    """f(3)=17, f(4)=22: the slope is the difference of the two, the offset what the slope leaves of the first."""
    first = 0
    while first < 1:
        a, b, x = rng.randint(2, knob("code.slope")), rng.randint(1, knob("code.offset")), rng.randint(2, 9)
        b = b if rng.random() < 0.5 else -b
        first = a * x + b
    steps = [worked(first + a, "-", first), f"{a}*{x}={a * x}"]
    steps.append(worked(first, "-", a * x) if b > 0 else worked(a * x, "-", first))
    inputs = rng.sample(range(-50, 200), TESTS)
    prompt = f"Write f(x): f({x})={first}, f({x + 1})={first + a}."
    return prompt, steps, _block("x", f"{a}*x{b:+d}"), _tests(inputs, lambda value: a * value + b)


def _from_words(rng: random.Random, knob: _Knob) -> _Drawn:
    """List or add up some of a list's numbers: as they are, squared or multiplied."""
    factor, bound, divisor = rng.randint(2, 9), rng.randint(2, knob("code.bound")), rng.randint(2, 9)
    values: tuple[tuple[str, str, Callable[[int], int]], ...] = (
        ("numbers", "n", lambda n: n),
        ("squares of numbers", "n*n", lambda n: n * n),
        (f"{factor} times numbers", f"{factor}*n", lambda n: factor * n),
    )
    conditions: tuple[tuple[str, str, Callable[[int], bool]], ...] = (
        (f"above {bound}", f"n>{bound}", lambda n: n > bound),
        (f"below {bound}", f"n<{bound}", lambda n: n < bound),
        (f"divisible by {divisor}", f"n%{divisor}==0", lambda n: n % divisor == 0),
    )
    (what, expression, value), (which, condition, keeps) = rng.choice(values), rng.choice(conditions)
    adds = rng.random() < 0.5
    body = f"{expression} for n in v if {condition}"

    def result(given: list[int]) -> int | list[int]:
        kept = [value(n) for n in given if keeps(n)]
        return sum(kept) if adds else kept

    # The bound and its neighbours are among the inputs: a bound that is off by one is found.
    inputs = [[rng.randint(0, 2 * bound + 20) for _ in range(8)] + [bound - 1, bound, bound + 1] for _ in range(TESTS)]
    prompt = f"Write f(v): {'add up' if adds else 'list'} {what} {which}."
    return prompt, [], _block("v", f"sum({body})" if adds else f"[{body}]"), _tests(inputs, result)


def _block(parameter: str, expression: str) -> str:
    return f"```python\ndef f({parameter}):\n    return {expression}\n```"


def _tests(inputs: list[Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    return {"fn_name": "f", "tests": [{"args": [value], "expected": function(value)} for value in inputs]}
