"""Fill the local model from published tensors, whatever the parallel layout: from a file or from seeded noise.

Where a local weight stands in its global tensor is read from megatron-core's own description of it, the one by which
checkpoints are written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_ring.checkpoint.tensor_rules import Box, Rule, rules_for
from megatron_ring.model.ring_model import RingModel

TensorSource = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Shard:
    """A local weight (or a part of one): a view of its memory, and its place in the global tensor `key`."""

    key: str
    box: Box
    data: torch.Tensor


def local_shards(model: RingModel) -> list[Shard]:
    """Every weight of this process, as views that may be written to."""
    described = model.sharded_state_dict()
    apply_factories(described)
    shards = []
    for item in nested_values(described):
        if isinstance(item, ShardedTensor):
            offset, size = tuple(item.global_offset), tuple(item.local_shape)
            shards.append(Shard(item.key, Box(offset, size), item.data.detach()))
    return shards


@torch.no_grad()
def fill_from(source: TensorSource, model: RingModel) -> None:
    """Set every local weight from the published tensors that `source(name)` returns; one at a time, each asked for once
    and only where this process holds a part of it. Rows behind the vocabulary become 0.

    Raises:
        RuntimeError: the rules do not cover every local weight exactly once (a bug, never the user's mistake).
    """
    by_target: dict[str, list[Shard]] = {}
    missing: dict[str, int] = {}
    for shard in local_shards(model):
        by_target.setdefault(shard.key, []).append(shard)
        missing[shard.key] = missing.get(shard.key, 0) + shard.data.numel()
        if shard.key in ("embedding.word_embeddings.weight", "output_layer.weight"):
            real = min(shard.box.size[0], max(0, model.ring_config.vocab_size - shard.box.offset[0]))
            missing[shard.key] -= shard.data[real:].numel()
            shard.data[real:] = 0
    for rule in rules_for(model.ring_config):
        parts = [(s, meet) for s in by_target.get(rule.target, []) if (meet := rule.box.meet(s.box)) is not None]
        if not parts:
            continue
        content = rule.to_ours(source(rule.source))
        for shard, meet in parts:
            target = shard.data[meet.slices(shard.box)]
            target.copy_(content[meet.slices(rule.box)])
            missing[rule.target] -= target.numel()
    wrong = {key: left for key, left in missing.items() if left}
    if wrong:
        raise RuntimeError(f"tensor rules and model differ in {wrong} elements")


def initialize_weights(model: RingModel, seed: int) -> None:
    """Random weights: matrices normal(0, init_std), norms 1, biases 0. Each published tensor is drawn from its own
    generator, seeded by (seed, name): the model is the same under every layout."""
    rules = {rule.source: rule for rule in rules_for(model.ring_config)}
    fill_from(lambda name: draw(rules[name], model.ring_config.init_std, seed), model)


def draw(rule: Rule, std: float, seed: int) -> torch.Tensor:
    """The random start of one published tensor, fp32."""
    if rule.kind != "matrix":
        return torch.ones(rule.shape) if rule.kind == "norm" else torch.zeros(rule.shape)
    digest = hashlib.sha256(f"{seed}:{rule.source}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(rule.shape).normal_(0.0, std, generator=generator)
