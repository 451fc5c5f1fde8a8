"""Rows that an evaluation has left: which of them count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rollout import scored_rows


def row(place: int, reward: float = 1.0, **more: Any) -> str:
    found = {"place": place, "id": str(place), "domain": "math", "reward": reward, "tokens": 3, "finish_reason": "stop"}
    return json.dumps({**found, "sample": 0, "response": "x", **more}) + "\n"


def test_whole_rows_with_a_verdict(tmp_path: Path) -> None:
    assert scored_rows._standing(tmp_path / "u", {"seed": 1}) == []
    failed = row(1, 0.0, detail={"machine_failure": "killed"})
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + failed + row(2)[:-5])
    assert scored_rows._standing(tmp_path / "u", {"seed": 1}) == [(0, 0)]
    # Asked again, by another replica before and behind the failure: the row with a verdict counts.
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + row(1))
    (tmp_path / "u" / "replica-1.jsonl").write_text(failed)
    found = scored_rows._places(tmp_path / "u")
    assert sorted(found) == [(0, 0), (1, 0)] and found[1, 0].figures.reward == 1
    lines = b"".join(scored_rows._lines(list(found.values())))
    assert [json.loads(line)["id"] for line in lines.splitlines()] == ["0", "1"] and b"place" not in lines


def test_rows_of_another_evaluation_go(tmp_path: Path) -> None:
    scored_rows._standing(tmp_path / "u", {"seed": 1})
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0))
    assert scored_rows._standing(tmp_path / "u", {"seed": 2}) == []
    assert not (tmp_path / "u" / "replica-0.jsonl").exists()


def test_a_strange_line_is_named(tmp_path: Path) -> None:
    scored_rows._standing(tmp_path, {})
    (tmp_path / "replica-0.jsonl").write_text(row(0) + "[]\n")
    with pytest.raises(UserError, match=r"replica-0\.jsonl:2: not a row of an evaluation"):
        scored_rows._standing(tmp_path, {})
