"""State that leaves the device and comes back: storages are empty meanwhile, nothing else can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from tests.checkpoint.test_saving import steps, trainer_for
from tests.layouts import LAYOUTS
from tests.training.test_trainer import step_batches


def moved_and_back(piece: int) -> None:
    from megatron_ring.parallel.host_store import HostStore

    generator = torch.Generator().manual_seed(piece)
    store = HostStore(piece)
    tensors = [torch.randn(count, generator=generator).to(dtype) for count, dtype in
               ((1, torch.float32), (333, torch.bfloat16), (5000, torch.float32), (128, torch.float64))]  # fmt: skip
    views = [tensor[1:].view(-1, 1) for tensor in tensors]
    wanted = [tensor.clone() for tensor in tensors]
    for turn in range(3):
        store.send(tensors[:2])
        store.send(tensor for tensor in tensors[2:])
        assert store.away and store.bytes == sum(tensor.nbytes for tensor in tensors)
        assert [tensor.untyped_storage().nbytes() for tensor in tensors] == [0] * 4
        room = store.room
        disturbing = [torch.full((5000,), float("nan")) for _ in range(4)]  # what is freed does not stay as it was
        store.bring_back()
        store.bring_back()
        assert not store.away and store.bytes == 0 and store.room == room and len(disturbing) == 4
        for tensor, view, expected in zip(tensors, views, wanted, strict=True):
            assert torch.equal(tensor, expected) and torch.equal(view[:, 0], expected[1:])
            tensor += turn
            expected += turn
    assert store.room < sum(tensor.nbytes for tensor in tensors) + 4 * 512 + piece


def test_pieces_hold_whole_steps() -> None:
    from megatron_ring.parallel.host_store import HostStore

    with pytest.raises(ValueError, match="not a multiple of 512"):
        HostStore(1000)


@pytest.mark.distributed
@pytest.mark.parametrize("piece", [512, 1536, 4096, 1 << 20])
def test_tensors_and_their_views_come_back(run_on: Any, piece: int) -> None:
    run_on(1, moved_and_back, piece)


def without_host_memory() -> tuple[bool, str]:
    from megatron_ring.parallel.host_store import HostStore

    tensor = torch.ones(3)
    try:
        HostStore(1 << 60).send([tensor])
    except MemoryError as error:
        return bool((tensor == 1).all()), str(error)
    return False, ""


@pytest.mark.distributed
def test_without_host_memory_nothing_is_lost(run_on: Any) -> None:
    ((intact, said),) = run_on(1, without_host_memory)
    assert intact and said == f"no {1 << 60} bytes more than 0"


def storages(trainer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that tensors of a trainer have and would have, by what they are; found by megatron-core's own names for them."""
    found: dict[str, list[torch.Tensor]] = {"masters": [], "moments": [], "gradients": [], "weights": []}
    for part in getattr(trainer.optimizer, "chained_optimizers", [trainer.optimizer]):
        found["masters"] += [main for group in part.shard_fp32_from_float16_groups for main in group]
        found["moments"] += [held[name] for held in part.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    for buffer in trainer.ddp.buffers + trainer.ddp.expert_parallel_buffers:
        found["gradients"].append(buffer.grad_data)
        found["weights"].append(buffer.param_data)
    have = {name: sum(tensor.untyped_storage().nbytes() for tensor in held) for name, held in found.items()}
    return have, {name: sum(tensor.nbytes for tensor in held) for name, held in found.items()}


def digest(trainer: Any) -> list[torch.Tensor]:
    from megatron_ring.checkpoint.pieces import has_masters, optimizer_pieces, weight_pieces

    pieces = weight_pieces(trainer.model)
    pieces += optimizer_pieces(trainer.optimizer, trainer.model, masters=has_masters(trainer.optimizer))
    return [piece.data.clone() for piece in pieces]


def trained(parallel: ParallelConfig, dtype: torch.dtype, offload: bool) -> Any:
    """Figures of several steps, with a pass of the model between; the state in the end; storages, before and while away."""
    from megatron_ring.training.losses import SFTLoss

    trainer, here = trainer_for(parallel, dtype=dtype)
    figures, seen = [], []
    for step in range(4):
        if offload:
            trainer.offload.send_away()
            trainer.offload.send_away()
            seen.append((*storages(trainer), trainer.offload.host_bytes, trainer.offload.freed_bytes))
        passed = trainer.evaluate(step_batches(99)[here.data_rank :: here.data_size], SFTLoss())
        if offload and step % 2:  # else the step brings it back
            trainer.offload.bring_back()
            assert storages(trainer)[0] == storages(trainer)[1] and trainer.offload.freed_bytes == 0
        figures.append((passed.mean("loss"), *steps(trainer, here, step, 1)))
    return figures, digest(trainer), seen


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["one", "dp2", "ep2", "pp2"])
def test_training_cannot_tell(run_on: Any, layout: str, dtype: torch.dtype) -> None:
    processes, parallel = LAYOUTS[layout]
    plain = run_on(processes, trained, parallel, dtype, False)
    for (figures, state, seen), (wanted, expected, _) in zip(
        run_on(processes, trained, parallel, dtype, True), plain, strict=True
    ):
        assert figures == wanted and len(set(figures)) == 4
        assert len(state) == len(expected) and all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))
        for step, (have, whole, host, freed) in enumerate(seen):
            assert have == {"masters": 0, "moments": 0, "gradients": 0, "weights": whole["weights"]}
            assert (whole["moments"] > 0) == (step > 0) and (whole["masters"] > 0) == (dtype is torch.bfloat16)
            assert host == whole["masters"] + whole["moments"] and freed == host + whole["gradients"]


def saved_and_loaded(parallel: ParallelConfig, folder: Path, away: bool) -> Any:
    """Save, train on, load into the same trainer, each time with the state away or not; what is there in the end."""
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.saving import save_checkpoint

    trainer, here = trainer_for(parallel, dtype=torch.bfloat16)
    steps(trainer, here, 0, 2)
    before = digest(trainer)
    if away:
        trainer.offload.send_away()
    save_checkpoint(folder, 2, trainer.model, trainer.optimizer, here, {})
    steps(trainer, here, 2, 1)
    if away:
        trainer.offload.send_away()
    load_checkpoint(folder / "step_2", trainer.model, here, trainer.optimizer)
    assert all(torch.equal(a, b) for a, b in zip(digest(trainer), before, strict=True))
    return steps(trainer, here, 2, 2), digest(trainer)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "dp2"])
def test_a_checkpoint_has_what_was_away(run_on: Any, tmp_path: Path, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    plain = run_on(processes, saved_and_loaded, parallel, tmp_path / "plain", False)
    found = run_on(processes, saved_and_loaded, parallel, tmp_path / "away", True)
    for (losses, state), (wanted, expected) in zip(found, plain, strict=True):
        assert losses == wanted and all(torch.equal(a, b) for a, b in zip(state, expected, strict=True))
    files = [{path.name: path.read_bytes() for path in (tmp_path / name / "step_2").glob("*.distcp")}
             for name in ("plain", "away")]  # fmt: skip
    assert files[0] == files[1] and files[0]
