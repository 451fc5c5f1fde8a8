"""The size of SFT's micro-batches in whole runs: told, recorded, kept on continuing, halved where memory runs out."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.cli import parse
from megatron_ring.config.sft import SFTConfig
from tests.mains.conftest import sft_flags
from tests.mains.test_pipeline import metrics, timeless, weights
from tests.mains.test_run_life import train_here

SIZE = "--data.micro-batch-tokens"


def recorded(run_dir: Path) -> Any:
    return yaml.safe_load((run_dir / "config.yaml").read_text())["data"]["micro_batch_tokens"]


def without_checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "checkpoint"} for row in timeless(metrics(run_dir))]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_size_is_told_recorded_and_kept(run_on: Any, tiny_data: Path, tmp_path: Path) -> None:
    """A run that goes on has the numbers of one that did not stop, and those of packs one by one but for the balance."""

    def go(name: str, processes: int, *more: str) -> tuple[str, str]:
        flags = sft_flags(tiny_data, tmp_path / name, "--data.global-batch", "4", "--no-async-save", *more)
        found: tuple[str, str] = run_on(processes, train_here, flags)[0]
        return found

    said, refused = go("single", 1, "--max-steps", "3")
    assert "sft: micro-batches of 512 tokens (one sequence each), chosen for a CPU\n" in said and not refused
    assert recorded(tmp_path / "single") == 512
    go("whole", 1, SIZE, "1024", "--max-steps", "3")
    go("parts", 1, SIZE, "1024", "--max-steps", "1")
    said, refused = go("parts", 1, "--max-steps", "3")
    assert "chosen" not in said and "continuing after step 1" in said and recorded(tmp_path / "parts") == 1024, refused
    assert without_checkpoints(tmp_path / "parts") == without_checkpoints(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    go("two", 2, SIZE, "1024", "--max-steps", "1")
    go("two", 1, "--max-steps", "3", SIZE, "5000")
    assert recorded(tmp_path / "two") == 5000  # more than a step has
    for name in ("whole", "two"):
        for found, one in zip(metrics(tmp_path / name), metrics(tmp_path / "single"), strict=True):
            assert found["tokens"] == one["tokens"]
            for figure in ("loss", "entropy", "grad_norm", "loss/z"):
                assert found[figure] == pytest.approx(one[figure], rel=1e-3), (name, figure)
            assert found["loss/balance"] < one["loss/balance"]  # of more tokens at a time
    said, refused = go("whole", 1, SIZE, "511")
    assert refused.startswith("--data.micro-batch-tokens is 511, below --data.context-length 512"), refused


def train_where_two_packs_have_no_room(flags: list[str]) -> tuple[str, str]:
    """A run whose first step of more than one pack runs out of memory: what it says, and the message where it ends."""
    import functools

    import torch

    from megatron_ring.corpus.conversations import load_datasets
    from megatron_ring.errors import UserError
    from megatron_ring.run.epochs import run_epochs
    from megatron_ring.sft import Conversations

    class Crowded(Conversations):
        def __init__(self, config: SFTConfig, data: Any, validation: Any) -> None:
            super().__init__(config, data, validation)
            self.batch = self.crowd

        def crowd(self, epoch: int, place: int, part: int, parts: int, sizes: list[int]) -> list[Any]:
            if max(sizes) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.data.batch(epoch, place, part, parts, sizes)

    said, refused = io.StringIO(), ""
    config = parse(SFTConfig, "ring-sft", "", flags)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        try:
            run_epochs(
                config,
                lambda config, tokenizer, shape: load_datasets(
                    config.data, tokenizer, config.seed, shape.max_positions, config.run_dir, functools.partial(print)
                ),
                lambda config, _, data, validation: Crowded(config, data, validation),
            )
        except UserError as error:
            refused = str(error)
    return said.getvalue(), refused


@pytest.mark.slow
@pytest.mark.distributed
def test_where_memory_runs_out_a_chosen_size_is_halved(run_on: Any, tiny_data: Path, tmp_path: Path) -> None:
    flags = sft_flags(tiny_data, tmp_path / "run", "--no-async-save", "--max-steps")
    said, refused = run_on(1, train_where_two_packs_have_no_room, [*flags, "2", SIZE, "1500"])[0]
    assert refused == "rank 0: step 1 ran out of GPU memory: try --data.micro-batch-tokens 512" and "anew" not in said
    said, refused = run_on(1, train_where_two_packs_have_no_room, [*flags, "2"])[0]
    assert not refused and said.count("sft: rank 0: step 1 ran out of GPU memory: beginning anew with ") == 1, refused
    assert "micro-batches of 512 tokens\n" in said
    assert recorded(tmp_path / "run") == 512 and [row["step"] for row in metrics(tmp_path / "run")] == [1, 2]
