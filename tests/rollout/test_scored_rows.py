"""Rows that an evaluation has left: which of them count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.data.records import Message
from megatron_ring.errors import UserError
from megatron_ring.rollout import scored_rows
from megatron_ring.rollout.records import Rollout, ScoredRollout
from tests.rollout.responses import completion


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


def test_rows_of_another_evaluation_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """These alone: the folder may hold files of the user's."""
    scored_rows._standing(tmp_path / "u", {"seed": 1})
    (tmp_path / "u" / "replica-0.jsonl").write_text(row(0) + row(1))
    (tmp_path / "u" / "notes.txt").write_text("mine")
    assert scored_rows._standing(tmp_path / "u", {"seed": 2}) == []
    assert "removed 2 responses" in capsys.readouterr().out
    assert not (tmp_path / "u" / "replica-0.jsonl").exists() and (tmp_path / "u" / "notes.txt").exists()


def test_rows_that_are_missing(run_on: Any, tmp_path: Path) -> None:
    """As where each machine has an --out of its own: no result of a part. Messages are as files have them."""
    run_on(1, _write_too_few, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
    (line,) = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == [{"role": "user", "content": "q"}]


def _write_too_few(out: Path) -> None:
    from megatron_ring.parallel import context

    found = {"id": "a", "domain": "math", "reward": 1.0, "tokens": 3, "finish_reason": "stop", "sample": 0}
    here = context.initialize(ParallelConfig(), RING_TINY, 0)
    item = ScoredRollout(Rollout(0, 0, "a", "math", [1], 0, completion(3)), 1.0, "why", {})
    with scored_rows.ScoredRows(out, {}, here, lambda _: {**found, "prompt": (Message("user", "q"),)}) as rows:
        rows.add(item)
    with pytest.raises(UserError, match=r"1 of 2 responses are here: let --out be a folder that the machines"):
        rows.write(out / "samples.jsonl", 2)
    assert rows.write(out / "samples.jsonl", 1)[0].reward == 1
    rows.remove()


def test_a_strange_line_is_named(tmp_path: Path) -> None:
    scored_rows._standing(tmp_path, {})
    (tmp_path / "replica-0.jsonl").write_text(row(0) + "[]\n")
    with pytest.raises(UserError, match=r"replica-0\.jsonl:2: not a row of an evaluation"):
        scored_rows._standing(tmp_path, {})
