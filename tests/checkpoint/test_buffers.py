"""Persistent buffers in checkpoints: every layout, older checkpoints without them, values that differ, conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError
from tests.checkpoint.test_saving import trainer_for
from tests.layouts import LAYOUTS

BIAS = "decoder.layers.{}.mlp.router.expert_bias"


def with_buffers(parallel: ParallelConfig, optional: bool = False, width: int = RING_TINY.num_experts) -> tuple[Any, Any]:
    """A trainer whose routers have a bias, as balancing without a loss has, and whose model counts tokens; both beside a
    scratch buffer that is no one else's business."""
    trainer, here = trainer_for(parallel, dtype=torch.bfloat16)
    for layer in trainer.model.decoder.layers:
        layer.mlp.router.register_buffer("expert_bias", torch.full((width,), -1.0))
        layer.mlp.router.register_buffer("scratch", torch.zeros(3), persistent=False)
        layer.mlp.router.optional_buffers = ("expert_bias",) if optional else ()
    trainer.model.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))
    trainer.model.optional_buffers = ("tokens_seen",) if optional else ()
    return trainer, here


def biases(trainer: Any) -> dict[int, torch.Tensor]:
    """By the layer's number among all."""
    return {layer.layer_number - 1: layer.mlp.router.expert_bias for layer in trainer.model.decoder.layers}


def value_of(layer: int) -> torch.Tensor:
    """With more digits than bf16 holds."""
    return torch.arange(RING_TINY.num_experts) / 7 + layer


def save(parallel: ParallelConfig, folder: Path, buffers: bool = True, apart: bool = False) -> str:
    """Save after setting the buffers, `apart` on the last rank differently; what went wrong."""
    from megatron_ring.checkpoint.saving import save_checkpoint

    trainer, here = with_buffers(parallel) if buffers else trainer_for(parallel, dtype=torch.bfloat16)
    if buffers:
        for layer, bias in biases(trainer).items():
            bias.copy_(value_of(layer) + (1e-6 if apart and here.rank == here.world_size - 1 else 0))
        trainer.model.tokens_seen.fill_(2**40 + 1)
    try:
        save_checkpoint(folder, 3, trainer.model, trainer.optimizer, here, {})
    except UserError as error:
        return str(error)
    return ""


def load(parallel: ParallelConfig, folder: Path, optional: bool = False, width: int = RING_TINY.num_experts) -> Any:
    """(problem, buffers of this rank by layer, tokens seen) after loading."""
    from megatron_ring.checkpoint.loading import load_checkpoint

    trainer, here = with_buffers(parallel, optional, width)
    try:
        load_checkpoint(folder / "step_3", trainer.model, here, trainer.optimizer)
    except UserError as error:
        return str(error), {}, 0
    return "", biases(trainer), int(trainer.model.tokens_seen)


@pytest.mark.distributed
@pytest.mark.parametrize(("saved", "loaded"), [("dp2", "pp2"), ("tp2", "ep2"), ("pp2", "tp2_ep2")])
def test_buffers_travel_between_layouts(run_on, tmp_path: Path, saved: str, loaded: str) -> None:
    processes, parallel = LAYOUTS[saved]
    assert run_on(processes, save, parallel, tmp_path) == [""] * processes
    processes, parallel = LAYOUTS[loaded]
    seen = set()
    for problem, found, tokens in run_on(processes, load, parallel, tmp_path):
        assert problem == "" and tokens == 2**40 + 1
        for layer, bias in found.items():
            assert bias.dtype is torch.float32 and torch.equal(bias, value_of(layer)), layer
        seen |= found.keys()
    assert seen == set(range(RING_TINY.num_layers))


@pytest.mark.distributed
def test_each_is_written_once(run_on, tmp_path: Path) -> None:
    from megatron_ring.checkpoint.reading import CheckpointReader

    run_on(2, save, ParallelConfig(pipeline=2), tmp_path)
    reader = CheckpointReader(tmp_path / "step_3")
    names = {*(BIAS.format(layer) for layer in range(RING_TINY.num_layers)), "tokens_seen"}
    assert names < reader.tensors.keys() and not any("scratch" in name for name in reader.tensors)
    assert all(len(reader.tensors[name].chunks) == 1 for name in names)


@pytest.mark.distributed
def test_an_older_checkpoint_leaves_optional_ones_as_they_are(run_on, tmp_path: Path) -> None:
    run_on(1, save, ParallelConfig(), tmp_path, False)
    for problem, found, tokens in run_on(2, load, ParallelConfig(tensor=2), tmp_path, True):
        assert problem == "" and tokens == 0 and len(found) == RING_TINY.num_layers
        assert all((bias == -1).all() for bias in found.values())
    ((problem, _, _),) = run_on(1, load, ParallelConfig(), tmp_path)
    assert f"{BIAS.format(0)} is missing" in problem and "tokens_seen is missing" in problem


@pytest.mark.distributed
def test_another_shape_is_named(run_on, tmp_path: Path) -> None:
    run_on(1, save, ParallelConfig(), tmp_path)
    ((problem, _, _),) = run_on(1, load, ParallelConfig(), tmp_path, False, 5)
    assert f"{BIAS.format(0)} has shape ({RING_TINY.num_experts},), here (5,)" in problem


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2"])
def test_values_that_differ_between_ranks_are_not_saved(run_on, tmp_path: Path, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    for problem in run_on(processes, save, parallel, tmp_path, True, True):
        assert f"{BIAS.format(0)} differs between ranks 0 and 1" in problem
    assert not (tmp_path / "step_3").exists()


@pytest.mark.distributed
def test_conversion_refuses_what_has_no_published_name(run_on, tmp_path: Path) -> None:
    from megatron_ring.checkpoint.convert import export_checkpoint

    run_on(1, save, ParallelConfig(), tmp_path / "with")
    run_on(1, save, ParallelConfig(), tmp_path / "without", False)
    with pytest.raises(UserError, match=r"router\.expert_bias has no name in the published layout"):
        export_checkpoint(tmp_path / "with" / "step_3", tmp_path / "hf")
    export_checkpoint(tmp_path / "without" / "step_3", tmp_path / "hf")


def undescribed() -> str:
    from megatron_ring.checkpoint.pieces import weight_pieces

    trainer, _ = trainer_for(ParallelConfig())
    trainer.model.decoder.layers[0].mlp.experts.register_buffer("load", torch.zeros(RING_TINY.num_experts))
    try:
        weight_pieces(trainer.model)
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_a_buffer_that_a_module_forgets_to_describe_is_a_bug(run_on) -> None:
    assert run_on(1, undescribed) == [
        f"persistent buffers of shape ({RING_TINY.num_experts},) are described by no sharded_state_dict"
    ]


def with_a_reference() -> list[float]:
    """First router's first bias: of the model, with the reference in its place, and afterwards."""
    from megatron_ring.training.reference import ReferencePolicy

    trainer, _ = with_buffers(ParallelConfig())
    reference = ReferencePolicy(trainer, 1.0)
    bias = biases(trainer)[0]
    bias.fill_(5.0)
    found = [float(bias[0])]
    with reference.in_place_of_the_model():
        found.append(float(bias[0]))
    return [*found, float(bias[0])]


@pytest.mark.distributed
def test_the_reference_policy_has_buffers_of_its_own(run_on) -> None:
    assert run_on(1, with_a_reference) == [[5.0, -1.0, 5.0]]
