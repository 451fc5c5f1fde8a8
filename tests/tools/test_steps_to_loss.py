"""Steps to a loss: where the line through the validations crosses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.errors import UserError
from tests.analysis.plausible import write_jsonl
from tools.steps_to_loss import Flags, main


def write(run: Path, losses: list[float]) -> Path:
    rows = [{"step": 10 * n, "checkpoint": f"step_{10 * n}", "validation/loss": loss, "validation/entropy": 0.1}
            for n, loss in enumerate(losses, start=1)]  # fmt: skip
    write_jsonl(run / "metrics.jsonl", rows)
    return run


def test_steps_to_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, random = write(tmp_path / "base", [2.0, 1.0, 0.5]), write(tmp_path / "random", [4.0, 2.0, 1.25, 1.5])
    main(Flags((base, random)))
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == 1.25 and [one["steps"] for one in found["runs"].values()] == [18, 30]
    main(Flags((base, random), loss=0.5))
    assert [one["steps"] for one in json.loads(capsys.readouterr().out)["runs"].values()] == [30, None]
    main(Flags((base,), loss=3.0))
    assert next(iter(json.loads(capsys.readouterr().out)["runs"].values()))["steps"] == 10


def test_runs_that_say_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    with pytest.raises(UserError, match="has measured no validation loss"):
        main(Flags((tmp_path,)))
    with pytest.raises(UserError, match="no such file"):
        main(Flags((tmp_path / "none",)))
    with pytest.raises(UserError, match="at least one"):
        main(Flags(()))
