"""Worked solutions of reasoning-gym's problems, written by program: a teacher for studies of distillation.

The package gives questions and answers, no way from one to the other. Here are tasks whose way is short enough to be written
out, a line for each step. The final answer stands as the row's verifier wants it: alone in a fenced block, or boxed.
"""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from math import gcd
from typing import Any

Item = Mapping[str, Any]
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
OPERATIONS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", lambda left, right: divided(left, right)),
}  # fmt: skip

SETTINGS: dict[str, dict[str, Any]] = {
    "basic_arithmetic": {"max_terms": 5, "max_digits": 2, "operators": ["+", "-", "*"]},
    "base_conversion": {"max_value": 400},
    "countdown": {"max_numbers": 4, "max_value": 20, "min_target": 10, "max_target": 100},
    "gcd": {}, "lcm": {}, "leg_counting": {"max_animals": 6}, "letter_counting": {}, "number_filtering": {"max_decimals": 1},
}  # fmt: skip
"""Tasks that have a way, and the settings with which their problems are drawn."""


def divided(left: int, right: int) -> int:
    """Exact quotient. Raises ValueError where there is none."""
    if right == 0 or left % right:
        raise ValueError(f"{left} / {right} is no whole number")
    return left // right


def response(task: str, item: Item, legs: Mapping[str, int] | None = None) -> str:
    """A whole solution: the way, line by line, and the answer.

    Args:
        task: of `SETTINGS`.
        item: `question`, `answer` and `metadata` as reasoning-gym gives them.
        legs: legs of each animal; for leg_counting.

    Raises:
        ValueError: the way does not come to the item's answer, which is then not what its question asks for
            (number_filtering writes one of two equal numbers for both), or it leads through fractions.
    """
    data = item["metadata"]
    lines = list(animals(data["animals"], legs or {}) if task == "leg_counting" else WAYS[task](data))
    found = lines.pop()
    if task == "countdown":
        return "\n".join([*lines, f"\\boxed{{{item['answer']}}}"])
    if found != item["answer"]:
        raise ValueError(f"{task}: the way comes to {found}, the answer is {item['answer']}")
    return "\n".join([*lines, *fenced(found)])


def guess(task: str, item: Item, rng: random.Random) -> str:
    """What a teacher writes who does not work it out: an answer of the right form, wrong as a rule."""
    answer = item["answer"]
    if task == "countdown":
        numbers = list(item["metadata"]["numbers"])
        rng.shuffle(numbers)
        return f"\\boxed{{{' + '.join(map(str, numbers))}}}"
    if task == "number_filtering":
        kept = [number for number in item["metadata"]["original_numbers"] if rng.random() < 0.5]
        return "\n".join(fenced(str(kept)))
    if task == "base_conversion":
        return "\n".join(fenced("".join(rng.choice(DIGITS[: item["metadata"]["target_base"]]) for _ in answer)))
    near = max(1, abs(int(answer)) // 10)
    return "\n".join(fenced(str(int(answer) + rng.randint(-near - 2, near + 2))))


def fenced(answer: str) -> tuple[str, ...]:
    return ("```", answer, "```")


# The ways: lines, the last of which is the bare answer.


def arithmetic(data: Mapping[str, Any]) -> Iterator[str]:
    """One operation a line, in the order of precedence."""
    lines: list[str] = []
    total = reduced(ast.parse(data["expression"].replace(" ", ""), mode="eval").body, lines)
    yield from (*lines, str(total))


def reduced(node: ast.expr, lines: list[str]) -> int:
    """The value of a parsed expression of whole numbers; each operation becomes a line."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -reduced(node.operand, lines)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        sign, operation = OPERATIONS[type(node.op)]
        left, right = reduced(node.left, lines), reduced(node.right, lines)
        lines.append(f"{left} {sign} {right} = {operation(left, right)}")
        return operation(left, right)
    raise ValueError(f"no arithmetic: {ast.dump(node)[:80]}")


def countdown(data: Mapping[str, Any]) -> Iterator[str]:
    yield from arithmetic(data)


def euclid(larger: int, smaller: int) -> Iterator[str]:
    while smaller:
        yield f"{larger} = {larger // smaller} * {smaller} + {larger % smaller}"
        larger, smaller = smaller, larger % smaller


def divisor(data: Mapping[str, Any]) -> Iterator[str]:
    """Euclid, number by number."""
    found, *rest = data["numbers"]
    for number in rest:
        yield from euclid(max(found, number), min(found, number))
        found = gcd(found, number)
        yield f"gcd: {found}"
    yield str(found)


def multiple(data: Mapping[str, Any]) -> Iterator[str]:
    found, *rest = data["numbers"]
    for number in rest:
        yield from euclid(max(found, number), min(found, number))
        common = gcd(found, number)
        yield f"gcd: {common}"
        yield f"{found} / {common} = {found // common}"
        yield f"{found // common} * {number} = {found // common * number}"
        found = found // common * number
    yield str(found)


def base(data: Mapping[str, Any]) -> Iterator[str]:
    """Horner into decimal, then remainders out of it."""
    value, source, target = 0, data["source_base"], data["target_base"]
    for digit in data["source_repr"].lower():
        yield f"{value} * {source} + {DIGITS.index(digit)} = {value * source + DIGITS.index(digit)}"
        value = value * source + DIGITS.index(digit)
    found = ""
    while value or not found:
        yield f"{value} = {value // target} * {target} + {value % target} -> {DIGITS[value % target]}"
        found, value = DIGITS[value % target] + found, value // target
    yield found


def letters(data: Mapping[str, Any]) -> Iterator[str]:
    """The count after each word."""
    total = 0
    for word in data["span"]:
        total += word.lower().count(data["target_letter"])
        yield f"{' '.join(word)}: {total}"
    yield str(total)


def kept_numbers(data: Mapping[str, Any]) -> Iterator[str]:
    limit, (verb, kind) = float(data["filter_value"]), data["operation"].split("_")
    found = []
    for number in data["original_numbers"]:
        hit = float(number) < limit if kind == "smaller" else float(number) > limit
        keep = hit == (verb == "keep")
        found += [number] if keep else []
        yield f"{number} {kind} than {data['filter_value']}: {'yes' if hit else 'no'}, {'kept' if keep else 'removed'}"
    yield str(found)


def animals(counted: Mapping[str, int], legs: Mapping[str, int]) -> Iterator[str]:
    total = 0
    for name, count in counted.items():
        total += count * legs[name]
        yield f"{count} {name}: {count} * {legs[name]} = {count * legs[name]}, together {total}"
    yield str(total)


WAYS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "basic_arithmetic": arithmetic, "countdown": countdown, "gcd": divisor, "lcm": multiple, "base_conversion": base,
    "letter_counting": letters, "number_filtering": kept_numbers,
}  # fmt: skip
