"""Fill the local model from published tensors, whatever the parallel layout: from a file or from seeded noise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch

from megatron_ring.checkpoint.tensor_rules import Rule, published_shapes, rules_for
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel.context import ParallelContext

TensorSource = Callable[[str], torch.Tensor]


def local_rules(model: RingModel, context: ParallelContext) -> list[Rule]:
    """Rules of this process's part of `model`; every local parameter is covered exactly once.

    Raises:
        RuntimeError: the rules and the parameters disagree (a bug, never the user's mistake).
    """
    config = model.ring_config
    per_stage = config.num_layers // context.config.pipeline
    per_rank = config.num_experts // context.config.expert
    first_layer, first_expert = context.pipeline_rank * per_stage, context.expert_rank * per_rank
    rules = rules_for(
        config,
        range(first_layer, first_layer + per_stage),
        range(first_expert, first_expert + per_rank),
        context.first_stage,
        context.last_stage,
    )
    covered, held = sorted(rule.parameter for rule in rules), sorted(name for name, _ in model.named_parameters())
    if covered != held:
        raise RuntimeError(f"tensor rules cover {set(covered) ^ set(held)} differently from the model")
    return rules


@torch.no_grad()
def fill_from(source: TensorSource, model: RingModel, context: ParallelContext) -> None:
    """Set every local parameter from the published tensors that `source(name)` returns."""
    parameters = dict(model.named_parameters())
    ranks = {
        "tensor": (context.tensor_rank, context.config.tensor),
        "expert_tensor": (context.expert_tensor_rank, context.config.expert_tensor),
    }
    for rule in local_rules(model, context):
        whole = rule.form.merge([source(name) for name in rule.sources])
        local = rule.form.shard(whole, *ranks[rule.split_over])
        parameter = parameters[rule.parameter]
        if local.shape != parameter.shape:
            raise RuntimeError(f"{rule.parameter}: {tuple(local.shape)} does not fill {tuple(parameter.shape)}")
        parameter.copy_(local)


def initialize_weights(model: RingModel, context: ParallelContext, seed: int) -> None:
    """Random weights, normal(0, init_std) and norms 1. Each published tensor is drawn from its own generator, seeded by
    (seed, name): the model is the same under every layout."""
    config = model.ring_config
    shapes = published_shapes(config)

    def draw(name: str) -> torch.Tensor:
        shape = shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.empty(shape).normal_(0.0, config.init_std, generator=generator)

    fill_from(draw, model, context)


def published_tensors(model: RingModel, context: ParallelContext) -> Iterator[tuple[str, torch.Tensor]]:
    """The published tensors of a model held whole by one process, one by one.

    Raises:
        RuntimeError: the model is split over processes.
    """
    if context.config.tensor * context.config.pipeline * context.config.expert * context.config.expert_tensor > 1:
        raise RuntimeError("published tensors are taken from a model held whole by one process")
    parameters = dict(model.named_parameters())
    for rule in local_rules(model, context):
        pieces = rule.form.split(parameters[rule.parameter].detach())
        yield from zip(rule.sources, pieces, strict=True)
