#!/usr/bin/env python
"""Keep the code that documents quote equal to the source.

    python tools/quote_source.py docs/architecture.md

A quote stands between `<!-- quote FILE -->`, or `<!-- quote FILE NAME -->`, and `<!-- end -->`. NAME is a function, a class
or a method (`Class.method`); without it the whole file is quoted. This command writes the quotes again.
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path

from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main

ROOT = Path(__file__).resolve().parents[1]
QUOTE = re.compile(r"(<!-- quote (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.S)


def main() -> None:
    """Write the quotes of the given pages again; say which pages changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", metavar="PAGE", help="markdown files")
    for page in parser.parse_args().pages:
        text = page.read_text(encoding="utf-8")
        fresh = with_quotes(text)
        if fresh != text:
            write_atomically(page, fresh.encode())
            print(f"{page}: quotes written again")


def with_quotes(text: str) -> str:
    """The text of a page with every quote as the source has it.

    Raises:
        UserError: a quoted file or name is not there.
    """
    return QUOTE.sub(lambda found: f"{found[1]}```python\n{source(found[2], found[3])}\n```\n{found[4]}", text)


def source(file: str, name: str | None) -> str:
    """The source of a file, or of a definition in it with its decorators, without blank lines at its ends."""
    path = ROOT / file
    if not path.is_file():
        raise UserError(f"quote {file}: no such file")
    text = path.read_text(encoding="utf-8")
    if name is None:
        return text.strip("\n")
    body = ast.parse(text).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((item for item in body if isinstance(item, DEFINITIONS) and item.name == part), None)
        if not isinstance(node, DEFINITIONS):
            raise UserError(f"quote {file} {name}: no such definition")
        body = node.body
    assert isinstance(node, DEFINITIONS) and node.end_lineno is not None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

if __name__ == "__main__":
    run_main(main)
