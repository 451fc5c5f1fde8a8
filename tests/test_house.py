"""Holds the size of files and functions: what is longer is cut by meaning. Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("megatron_ring", "tools")
FILE_LINES, FUNCTION_LINES = 300, 60
EXCEPTIONS: frozenset[str] = frozenset()  # `FILE` or `FILE:FUNCTION`, each with its reason beside it


def too_long(root: Path) -> Iterator[tuple[str, int]]:
    """What is over a limit, as `FILE` or `FILE:FUNCTION`, and its lines. A decorator is no part of its function."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            if (lines := len(text.splitlines())) > FILE_LINES:
                yield name, lines
            for node in ast.walk(ast.parse(text, name)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    assert node.end_lineno is not None
                    if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                        yield f"{name}:{node.name}", lines


def test_no_file_and_no_function_is_too_long() -> None:
    found = dict(too_long(ROOT))
    assert {name: lines for name, lines in found.items() if name not in EXCEPTIONS} == {}
    assert found.keys() >= EXCEPTIONS, "an exception that is none any more"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 300, {}),
        ("x = 1\n" * 301, {"tools/a.py": 301}),
        ("def f():\n" + "    x = 1\n" * 59, {}),
        ("def f():\n" + "    x = 1\n" * 60, {"tools/a.py:f": 61}),
        ("class A:\n    @b\n    async def g(self):\n" + "        x = 1\n" * 60, {"tools/a.py:g": 61}),
        ("def f():\n    def g():\n" + "        x = 1\n" * 59, {"tools/a.py:f": 61}),
    ],
)
def test_the_checker_sees(text: str, found: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text(text)
    assert dict(too_long(tmp_path)) == found
