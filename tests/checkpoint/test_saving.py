"""Checkpoints: across layouts, interrupted, damaged, of another shape, on a full disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError
from tests.layouts import LAYOUTS
from tests.training.test_trainer import OPTIMIZER, ROUTER, SHAPES, step_batches


def trainer_for(
    parallel: ParallelConfig, shape: ModelConfig = RING_TINY, seed: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here, ROUTER, dtype)
    initialize_weights(model, seed=seed)
    return Trainer(model, here, OPTIMIZER), here


def steps(trainer: Any, here: Any, first: int, count: int) -> list[float]:
    from megatron_ring.training.losses import SFTLoss

    losses = []
    for step in range(first, first + count):
        batches = step_batches(step)[here.data_rank :: here.data_size]
        losses.append(trainer.train_step(batches, SFTLoss(), OPTIMIZER.lr_at(step, 20)).mean("loss"))
    return losses


def save_after_three(
    parallel: ParallelConfig, folder: Path, shape: ModelConfig = RING_TINY, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Train 3 steps, save, train 3 more; the losses of the latter."""
    from megatron_ring.checkpoint.saving import save_checkpoint

    trainer, here = trainer_for(parallel, shape, dtype=dtype)
    steps(trainer, here, 0, 3)
    save_checkpoint(folder, 3, trainer.model, trainer.optimizer, here, {"tokens": 12})
    return steps(trainer, here, 3, 3)


def continue_from(
    parallel: ParallelConfig, folder: Path, shape: ModelConfig = RING_TINY, dtype: torch.dtype = torch.float32
) -> list[float]:
    from megatron_ring.checkpoint.folder import latest_checkpoint
    from megatron_ring.checkpoint.loading import load_checkpoint

    trainer, here = trainer_for(parallel, shape, seed=99, dtype=dtype)
    found = latest_checkpoint(folder)
    assert found is not None
    step, extra = load_checkpoint(found, trainer.model, here, trainer.optimizer)
    assert (step, extra) == (3, {"tokens": 12})
    return steps(trainer, here, 3, 3)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("layout", "name"), [("dp2", "tiny"), ("tp2", "tiny"), ("ep2", "tiny"), ("pp2", "tiny"), ("tp2", "odd"), ("pp2", "odd")]
)
def test_a_layout_continues_where_it_stopped_and_another_reads_it(run_on, tmp_path: Path, layout: str, name: str) -> None:
    (processes, parallel), shape = LAYOUTS[layout], SHAPES[name]
    undisturbed = run_on(processes, save_after_three, parallel, tmp_path, shape)[0]
    assert run_on(processes, continue_from, parallel, tmp_path, shape)[0] == undisturbed
    assert run_on(1, continue_from, ParallelConfig(), tmp_path, shape)[0] == pytest.approx(undisturbed, rel=1e-4)


@pytest.mark.distributed
def test_one_process_continues_bit_by_bit(run_on, tmp_path: Path) -> None:
    assert run_on(1, save_after_three, ParallelConfig(), tmp_path) == run_on(1, continue_from, ParallelConfig(), tmp_path)


@pytest.mark.slow
@pytest.mark.distributed
def test_fp32_weights_behind_a_bf16_model_are_kept(run_on, tmp_path: Path) -> None:
    """To the bit in bf16 itself; a run in fp32 goes on from them, and one in bf16 from a checkpoint of an fp32 run."""
    bf16, fp32 = torch.bfloat16, torch.float32
    (undisturbed,) = run_on(1, save_after_three, ParallelConfig(), tmp_path / "bf16", RING_TINY, bf16)
    assert run_on(1, continue_from, ParallelConfig(), tmp_path / "bf16", RING_TINY, bf16) == [undisturbed]
    assert run_on(2, continue_from, ParallelConfig(tensor=2), tmp_path / "bf16", RING_TINY, bf16)[0] == pytest.approx(
        undisturbed, rel=1e-2
    )
    exact = run_on(1, save_after_three, ParallelConfig(), tmp_path / "fp32", RING_TINY, fp32)[0]
    for saved, here in (("bf16", fp32), ("fp32", bf16)):
        (found,) = run_on(1, continue_from, ParallelConfig(), tmp_path / saved, RING_TINY, here)
        assert found == pytest.approx(exact, rel=2e-2), (saved, here)


def load_with_megatron(parallel: ParallelConfig, folder: Path) -> bool:
    """megatron-core's own loader reads our checkpoint: whether it finds the weights that ours finds."""
    from megatron.core import dist_checkpointing

    from megatron_ring.checkpoint.loading import load_checkpoint

    trainer, here = trainer_for(parallel, SHAPES["tiny"], seed=99)
    theirs = dist_checkpointing.load(trainer.model.sharded_state_dict(), str(folder))
    theirs = {name: tensor.clone() for name, tensor in theirs.items() if isinstance(tensor, torch.Tensor)}
    ours = dict(trainer.model.named_parameters())
    for weight in ours.values():
        weight.data.fill_(float("nan"))
    load_checkpoint(folder, trainer.model, here)
    return theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.distributed
def test_megatron_cores_loader_agrees(run_on, tmp_path: Path) -> None:
    run_on(2, save_after_three, ParallelConfig(expert=2), tmp_path)
    assert run_on(2, load_with_megatron, ParallelConfig(tensor=2), tmp_path / "step_3") == [True, True]


def try_to_load(folder: Path, shape: ModelConfig) -> str:
    from megatron_ring.checkpoint.loading import load_checkpoint

    trainer, here = trainer_for(ParallelConfig(), shape)
    try:
        load_checkpoint(folder, trainer.model, here, trainer.optimizer)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_damage_and_other_shapes_are_named(run_on, tmp_path: Path) -> None:
    run_on(1, save_after_three, ParallelConfig(), tmp_path)
    whole = tmp_path / "step_3"
    (message,) = run_on(1, try_to_load, whole, replace(RING_TINY, expert_width=64))
    assert "another shape" in message and "expert_width 96 (here 64)" in message
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    (data,) = damaged.glob("*.distcp")
    data.write_bytes(data.read_bytes()[:-7])
    (message,) = run_on(1, try_to_load, damaged, RING_TINY)
    assert data.name in message and "manifest" in message
    data.unlink()
    assert "missing" in run_on(1, try_to_load, damaged, RING_TINY)[0]
    (damaged / "manifest.json").unlink()
    assert "not a checkpoint" in run_on(1, try_to_load, damaged, RING_TINY)[0]


def save_with_little_room(folder: Path, limit: int) -> str:
    """Save while no file may grow beyond `limit` bytes: writes fail as on a full disk."""
    import resource
    import signal

    from megatron_ring.checkpoint.saving import save_checkpoint

    trainer, here = trainer_for(ParallelConfig())
    steps(trainer, here, 0, 3)
    save_checkpoint(folder, 3, trainer.model, trainer.optimizer, here, {"tokens": 12})
    steps(trainer, here, 3, 1)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_checkpoint(folder, 4, trainer.model, trainer.optimizer, here, {"tokens": 16})
    except UserError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    return ""


@pytest.mark.distributed
@pytest.mark.parametrize("limit", [1_000_000, 2_000])
def test_a_failed_save_leaves_the_previous_checkpoint(run_on, tmp_path: Path, limit: int) -> None:
    (message,) = run_on(1, save_with_little_room, tmp_path, limit)
    assert "saving failed" in message and "step_3 is intact" in message and "\n" not in message, message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_3"]
    assert len(run_on(1, continue_from, ParallelConfig(), tmp_path)[0]) == 3


def test_a_half_written_checkpoint_is_never_taken(tmp_path: Path) -> None:
    """What a kill leaves: a temporary folder, or a first renamed one that `latest` was about to name."""
    from megatron_ring.checkpoint.folder import latest_checkpoint

    (tmp_path / ".step_9.tmp").mkdir()
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "step_9").mkdir()
    (tmp_path / ".latest.tmp").write_text("step_9\n")
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "step_9" / "manifest.json").write_text(json.dumps({"files": {}}))
    assert latest_checkpoint(tmp_path) == tmp_path / "step_9"


def test_random_states_survive_a_round_trip(tmp_path: Path) -> None:
    from megatron_ring.parallel.device import random_state, set_random_state

    state = random_state()
    torch.save(state, tmp_path / "state.pt")
    first = torch.rand(3)
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.rand(3), first)
