"""The choice by entropy, and the tool that makes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ring.analysis.checkpoint_choice import choose_checkpoint
from megatron_ring.analysis.read_run import Epoch
from megatron_ring.errors import UserError
from tests.analysis.plausible import write_sft
from tests.processes import run

TOOL = Path(__file__).resolve().parents[2] / "tools" / "select_checkpoint.py"


def epochs(*entropies: float, losses: tuple[float, ...] = ()) -> list[Epoch]:
    """Epoch i+1 at step 10·(i+1) with the given validation entropy; losses fall unless given."""
    values = losses or tuple(1 / (index + 1) for index in range(len(entropies)))
    return [
        Epoch(f"step_{10 * index}", index, 10 * index, 1000.0 * index, entropy, loss)
        for index, (entropy, loss) in enumerate(zip(entropies, values, strict=True), start=1)
    ]


@pytest.mark.parametrize(
    ("entropies", "epoch"),
    [
        ((0.8, 0.49, 0.41, 0.31, 0.2), 4),  # the latest inside, not the first and not the last of all
        ((0.8, 0.5, 0.2), 2),  # the ends belong to the band
        ((0.8, 0.3, 0.2), 2),
        ((0.45, 0.8, 0.2), 1),  # entropy need not fall
        ((0.9, 0.7, 0.6), 3),  # none inside: the nearest above
        ((0.25, 0.2, 0.1), 1),  # none inside: the nearest below
        ((0.55, 0.25), 2),  # equally far: the later
        ((0.6,), 1),
    ],
)
def test_choice(entropies: tuple[float, ...], epoch: int) -> None:
    choice = choose_checkpoint(epochs(*entropies), band=(0.3, 0.5))
    assert (choice.epoch, choice.checkpoint, choice.entropy) == (epoch, f"step_{10 * epoch}", entropies[epoch - 1])


def test_order_of_the_list_does_not_matter() -> None:
    assert choose_checkpoint(list(reversed(epochs(0.49, 0.4, 0.1)))).epoch == 2


def test_reason_tells_the_numbers() -> None:
    inside = choose_checkpoint(epochs(0.8, 0.45, 0.35, 0.2)).reason
    assert "entropy 0.350" in inside and "latest of 2" in inside and "0.3–0.5" in inside
    assert "epoch 4, but the band decides" in inside  # its loss was lower
    above = choose_checkpoint(epochs(0.9, 0.6)).reason
    assert "No checkpoint lies in the band" in above and "0.600 to 0.900" in above and "0.100 above" in above
    assert "0.100 below" in choose_checkpoint(epochs(0.2, 0.1)).reason
    assert "\n" not in inside + above


def test_nothing_to_choose_from() -> None:
    with pytest.raises(UserError, match="no epoch checkpoint"):
        choose_checkpoint([])
    with pytest.raises(UserError, match="--entropy-low"):
        choose_checkpoint(epochs(0.4), band=(0.5, 0.3))


def run_tool(*flags: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, TOOL, *flags], timeout=60)


def test_tool_prints_the_path_alone_and_records_the_choice(tmp_path: Path) -> None:
    run = write_sft(tmp_path / "sft")
    done = run_tool("--run", str(run), "--entropy-low", "0.3", "--entropy-high", "0.5")
    assert (done.returncode, done.stdout) == (0, f"{run}/checkpoints/step_200\n")
    assert "latest of 3" in done.stderr and "step_240" in done.stderr
    record = json.loads((run / "selection.json").read_text())
    assert (record["checkpoint"], record["band"], len(record["epochs"])) == ("step_200", [0.3, 0.5], 6)
    assert not list(run.glob("*.partial"))


def test_tool_skips_deleted_checkpoints_and_says_so(tmp_path: Path) -> None:
    run = write_sft(tmp_path / "sft")
    (run / "checkpoints" / "step_200").rmdir()
    done = run_tool("--run", str(run))
    assert done.stdout == f"{run}/checkpoints/step_160\n"
    assert "Left out, because deleted: step_200" in json.loads((run / "selection.json").read_text())["reason"]


def test_tool_ends_with_one_line(tmp_path: Path) -> None:
    done = run_tool("--run", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "metrics.jsonl" in done.stderr and done.stderr.count("\n") == 1
