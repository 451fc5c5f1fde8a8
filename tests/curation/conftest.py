"""Rows and recipes that several tests of curation share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.curation.options import Options
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source

Outcome = dict[str, tuple[str, str] | None]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class Curated:
    """What a run left behind."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.kept = read_jsonl(out / "kept.jsonl")
        self.dropped = read_jsonl(out / "dropped.jsonl")
        self.ledger = read_jsonl(out / "ledger.jsonl")
        self.summary = json.loads((out / "summary.json").read_text())

    @property
    def reasons(self) -> dict[str, str]:
        """Of each dropped row, by its id."""
        return {entry["id"]: entry["reason"] for entry in self.ledger if entry["action"] == "dropped"}

    @property
    def changes(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for entry in self.ledger:
            if entry["action"] == "changed":
                found.setdefault(entry["id"], []).append(entry["reason"])
        return found


@pytest.fixture
def curated(tmp_path: Path) -> Callable[..., Curated]:
    """`curated(rows, *steps)`: the rows as a file of the source `s` after these steps."""

    def run(rows: list[Any], *steps: Options, **source: Any) -> Curated:
        path = write_jsonl(tmp_path / "s.jsonl", rows)
        run_recipe(Recipe((Source("s", (path,), **source),), steps), tmp_path / "out", 1, lambda text: None)
        return Curated(tmp_path / "out")

    return run


def problem(text: str, answer: Any = "5", **more: Any) -> dict[str, Any]:
    """A row of mathematics as the contract has it."""
    return {"id": "i", "domain": "math", "prompt": text, "answer": answer, **more}
