"""Exact value of an expression of whole numbers with + - * / and brackets, read by a parser of our own.

The text is never evaluated by Python. The parser keeps its own stacks, so nesting costs no recursion, and time is
linear in the text. Numbers are read first and can be checked before anything is computed: with few, small numbers
exact fractions stay small.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from megatron_ring.rewards.logic.game import Violation, excerpt

MAX_EXPRESSION_CHARACTERS = 1000
_TOKEN = re.compile(r"[ \t\r\n]*+(?:([0-9]++)|([-+*/()]))")
_BINDING = {"+": 1, "-": 1, "*": 2, "/": 2}
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression: its numbers from left to right, and all its tokens in postfix order."""

    numbers: tuple[int, ...]
    postfix: tuple[int | str, ...]


def parse_expression(text: str) -> Expression:
    """Read an expression. A minus stands between two operands only, multiplication is always written.

    Raises:
        Violation: anything that is not such an expression, and text longer than `MAX_EXPRESSION_CHARACTERS`.
    """
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        raise Violation(f"the expression has more than {MAX_EXPRESSION_CHARACTERS} characters")
    text = text.rstrip(" \t\r\n")
    postfix: list[int | str] = []
    waiting: list[str] = []  # operators and open brackets whose right side is not complete
    operand_due, position = True, 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise Violation(f"not part of an expression of whole numbers with + - * / ( ): {excerpt(text[position:])}")
        number, mark = token[1], token[2]
        if (number is not None or mark == "(") != operand_due:
            due = "a number or (" if operand_due else "an operator or )"
            raise Violation(f"{due} is missing before {excerpt(text[token.start() :].lstrip())}")
        position = token.end()
        if number is not None:
            postfix.append(_whole(number))
            operand_due = False
        elif mark == "(":
            waiting.append(mark)
        elif mark == ")":
            while waiting and waiting[-1] != "(":
                postfix.append(waiting.pop())
            if not waiting:
                raise Violation("a closing bracket has no opening one")
            waiting.pop()
        else:
            while waiting and waiting[-1] != "(" and _BINDING[waiting[-1]] >= _BINDING[mark]:
                postfix.append(waiting.pop())
            waiting.append(mark)
            operand_due = True
    if operand_due:
        raise Violation("the expression ends where a number is due")
    if "(" in waiting:
        raise Violation("an opening bracket is never closed")
    postfix += reversed(waiting)
    return Expression(tuple(token for token in postfix if isinstance(token, int)), tuple(postfix))


def value_of(expression: Expression) -> Fraction:
    """The exact value. Raises `Violation` for a division by zero."""
    stack: list[Fraction] = []
    for token in expression.postfix:
        if isinstance(token, int):
            stack.append(Fraction(token))
            continue
        right, left = stack.pop(), stack.pop()
        if token == "/" and right == 0:
            raise Violation("division by zero")
        stack.append(combine(left, token, right))
    return stack.pop()


def combine(left: Fraction, operator: str, right: Fraction) -> Fraction:
    """One exact operation."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right if operator == "*" else left / right


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS or (digits[0] == "0" and digits != "0"):
        raise Violation(f"{excerpt(digits)} is not a plain whole number of at most {_MAX_DIGITS} digits")
    return int(digits)
