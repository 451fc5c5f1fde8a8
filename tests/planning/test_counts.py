"""The plan's parameters, buffers, optimizer and kept activations against those of models really built, in every layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from megatron_ring.config.declarations import declared_weights, parameter_counts, stage_weights
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import PRESETS, RING_TINY
from megatron_ring.planning.activations import MicroBatchPass
from megatron_ring.planning.weights import local_sizes, training_state
from tests.layouts import LAYOUTS

ODD = "dense first, biases, odd sizes"
SHAPES = {
    "tiny": RING_TINY,
    ODD: replace(
        RING_TINY, num_layers=3, first_dense_layers=1, qkv_bias=True, vocab_size=509, num_shared_experts=2, expert_width=80
    ),
}


def built(shape: ModelConfig, parallel: ParallelConfig, precision: str) -> dict[str, Any]:
    """What a rank really holds."""
    import torch

    from megatron_ring.checkpoint.pieces import optimizer_parts
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context as parallel_context
    from megatron_ring.training.trainer import Trainer

    context = parallel_context.initialize(parallel, shape, seed=0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = build_model(shape, context, dtype=dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    split = {
        name: parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
        for name, parameter in model.named_parameters()
        if getattr(parameter, "allreduce", True)
    }
    trainer = Trainer(model, context, OptimizerConfig())
    buffers = trainer.ddp.buffers + trainer.ddp.expert_parallel_buffers
    copies = states = 0
    for part in optimizer_parts(trainer.optimizer):
        copies += sum(main.nbytes for group in part.shard_fp32_from_float16_groups for main in group)
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                held = part.optimizer.state_of(parameter)
                states += held["exp_avg"].nbytes + held["exp_avg_sq"].nbytes
    return {
        "stage": context.pipeline_rank,
        "shapes": shapes,
        "split": split,
        "weights": sum(buffer.param_data.nbytes for buffer in buffers),
        "gradients": sum(buffer.grad_data.nbytes for buffer in buffers),
        "optimizer": copies + states,
    }


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("shape", "precision"), [("tiny", "fp32"), (ODD, "bf16")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_holds_what_is_planned(run_on: Any, layout: str, shape: str, precision: str) -> None:
    world, parallel = LAYOUTS[layout]
    model = SHAPES[shape]
    itemsize = {"fp32": 4, "bf16": 2}[precision]
    ranks = run_on(world, built, model, parallel, precision)
    for rank in ranks:
        declared = stage_weights(model, parallel, rank["stage"])
        assert {name: weight.local_shape(parallel) for name, weight in declared.items()} == rank["shapes"]
        assert list(declared) == list(rank["shapes"])
        assert {name: weight.axis_of("tensor") for name, weight in declared.items() if not weight.expert} == rank["split"]
        plan = training_state(model, parallel, rank["stage"], world, itemsize, 4)
        assert (plan.weights, plan.gradients) == (rank["weights"], rank["gradients"])
        assert rank["optimizer"] <= plan.optimizer
    # Every parameter has its moments, and beside 16-bit weights its fp32 copy, once among those that share it.
    copies = sum(rank["optimizer"] for rank in ranks)
    once = 0.0
    for rank in ranks:
        data, expert_data = training_state(model, parallel, rank["stage"], world, itemsize, 4).sharers
        local = local_sizes(model, parallel, rank["stage"])
        each = [size / (expert_data if weight.expert else data) for weight, size in local]
        once += sum(each) * (8 if precision == "fp32" else 12)
    assert copies == pytest.approx(once, rel=1e-9)


def test_all_ranks_of_a_model_add_up_to_it() -> None:
    for shape in PRESETS.values():
        parallel = ParallelConfig(pipeline=2, expert=8)
        local = [size for stage in range(2) for size in local_sizes(shape, parallel, stage)]
        total = sum(size * (parallel.expert if weight.expert else 1) for weight, size in local)
        assert total == parameter_counts(shape)[0] == sum(weight.size for weight in declared_weights(shape))


def _tensors_of(value: Any, depth: int = 3) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_of(item, depth - 1)
    elif depth and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors_of(getattr(value, field.name), depth - 1)


def kept(
    shape: ModelConfig, parallel: ParallelConfig, recompute: str, lengths: list[int], capacity: int
) -> tuple[int, int, int]:
    """(pipeline stage, bytes that a forward pass leaves behind, those that its backward pass leaves): storages that autograd
    saves, or that its functions hold, each once; without parameters."""
    import torch

    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_packed
    from megatron_ring.parallel import collectives
    from megatron_ring.parallel import context as parallel_context

    context = parallel_context.initialize(parallel, shape, seed=0)
    model = build_model(shape, context, RouterLossConfig(1e-2, 1e-3), recompute=recompute)
    initialize_weights(model, 0)
    model.train()
    generator = torch.Generator().manual_seed(1 + context.data_rank)
    tokens = torch.randint(0, shape.vocab_size, (capacity,), generator=generator)
    positions = torch.cat([torch.arange(n) for n in (*lengths, capacity - sum(lengths))])
    layout = PackedLayout(positions, lengths, kernel="sdpa")
    storages: dict[int, tuple[Any, int]] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (storage, storage.nbytes())
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    if not model.first_stage:
        shape_in = (capacity // model.tensor_size, 1, shape.hidden_size)
        received = collectives.receive_from_previous_stage(shape_in, torch.float32, context.device)
        model.set_input_tensor(received.requires_grad_())
    model.router_losses.start_step(1.0)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = forward_packed(model, tokens, layout, padding=torch.arange(capacity) >= sum(lengths))
    for held in (hidden, *layout.rope(shape)):  # the closures that recompute layers hold the tables
        note(held)
    if not model.last_stage:
        collectives.send_to_next_stage(hidden.detach())
    nodes, seen = [hidden.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for value in getattr(node, "__dict__", {}).values():
            for tensor in _tensors_of(value):
                note(tensor)
                nodes.append(tensor.grad_fn)
    return context.pipeline_rank, sum(size for place, (_, size) in storages.items() if place not in own), context.rank


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recompute", ["none", "experts", "full"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"dp2"}))
def test_a_forward_pass_keeps_what_is_planned(run_on: Any, layout: str, recompute: str) -> None:
    """Two sequences of 640 tokens, whose attention keeps what cuDNN's does. Routers are not balanced: what ranks keep is
    compared as a sum."""
    world, parallel = LAYOUTS[layout]
    shape = SHAPES[ODD]
    ranks = run_on(world, kept, shape, parallel, recompute, [640, 640], 1280)
    found = sum(size for _, size, _ in ranks)
    plan = 0
    for stage, _, _ in ranks:
        one = MicroBatchPass(shape, parallel, 1280, 4, recompute, uneven=False, swiglu_kept=False)
        layers = parallel.stage_layers(shape.num_layers, stage)
        plan += sum(one.kept(layers, stage == 0, stage == parallel.pipeline - 1).values())
    states = 40_000 * world if recompute == "full" else 0  # of random generators, for each layer that is computed again
    assert found == pytest.approx(plan, rel=0.005, abs=states), (found, plan)
