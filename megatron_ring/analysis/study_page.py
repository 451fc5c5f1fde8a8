"""Writes a study's page: tables go between their marks in a page that is written by hand, figures and numbers beside it.

A mark is a line `<!-- table NAME -->`; what lies between it and the next `<!-- end -->` is replaced.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from megatron_ring.analysis.figures import png
from megatron_ring.errors import UserError


def write_page(
    docs: Path, name: str, tables: Mapping[str, str], figures: Mapping[str, Figure], numbers: Mapping[str, Any]
) -> None:
    """Write NAME.md (with all tables where it does not exist yet), figures/*.png and NAME.json.

    Raises:
        UserError: the page lacks the mark of a table.
    """
    page = docs / f"{name}.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else _bare(name, tables, figures)
    for table, content in tables.items():
        found = re.search(rf"<!-- table {re.escape(table)} -->\n(.*?)<!-- end -->", text, re.DOTALL)
        if found is None:
            raise UserError(f"{page}: no place for the table {table}: add <!-- table {table} --> and <!-- end -->")
        text = f"{text[: found.start(1)]}{content}{text[found.end(1) :]}"
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for figure, drawn in figures.items():
        _write(docs / "figures" / f"{figure}.png", png(drawn))
    _write(docs / f"{name}.json", (json.dumps(numbers, indent=1, ensure_ascii=False) + "\n").encode())
    _write(page, text.encode())


def _bare(name: str, tables: Mapping[str, str], figures: Mapping[str, Figure]) -> str:
    links = [figure_link(figure) for figure in figures]  # a table may place a figure
    parts = [f"# {name}", *(link for link in links if not any(link in table for table in tables.values()))]
    parts += [f"## {table}\n\n<!-- table {table} -->\n<!-- end -->" for table in tables]
    return "\n\n".join(parts) + "\n"


def figure_link(figure: str) -> str:
    """A figure beside the page, in Markdown."""
    return f"![{figure}](figures/{figure}.png)"


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
