"""Python text as a syntax tree, from any thread. Nothing is evaluated.

Up to Python 3.11.7 threads that parse at once share the parser's count of recursions, and one of them ends with a
SystemError about a text that is right (CPython's issue 106905). Other libraries parse too, so a lock of ours would not
do: such a text is parsed again.
"""

from __future__ import annotations

import ast
from typing import Any, cast

ATTEMPTS = 20


def parse_module(source: str) -> ast.Module:
    """Statements. Raises SyntaxError, ValueError, RecursionError, MemoryError as `ast.parse`."""
    return cast(ast.Module, _parse(source, "exec"))


def parse_expression(source: str) -> ast.expr:
    """One expression, with the same errors."""
    return cast(ast.Expression, _parse(source, "eval")).body


def read_literal(source: str) -> Any:
    """`ast.literal_eval` of a text, with its errors."""
    return ast.literal_eval(parse_expression(source.lstrip(" \t")))


def _parse(source: str, mode: str) -> ast.AST:
    for _ in range(ATTEMPTS):
        try:
            return ast.parse(source, mode=mode)
        except SystemError:
            continue
    return ast.parse(source, mode=mode)
