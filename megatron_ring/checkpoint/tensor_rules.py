"""How published (`bailing_moe`) tensors become this model's parameters: one declared, invertible list of rules.

Import, export and random initialisation all go through these rules, so that they agree under every parallel layout.
A rule names one parameter of this process and the published tensors it is made of; its form says how:

    merge   published tensors      -> the whole Megatron tensor
    split   the whole Megatron one -> published tensors (inverse of merge)
    shard   the whole Megatron one -> the part of one tensor-parallel rank
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from megatron_ring.config import ModelConfig

Tensors = list[torch.Tensor]


class Form(Protocol):
    """One way of building a parameter out of published tensors."""

    def merge(self, published: Tensors) -> torch.Tensor: ...

    def split(self, whole: torch.Tensor) -> Tensors: ...

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Same:
    """The published tensor itself, split over ranks along `axis` (None: every rank holds it whole)."""

    axis: int | None = None

    def merge(self, published: Tensors) -> torch.Tensor:
        return published[0]

    def split(self, whole: torch.Tensor) -> Tensors:
        return [whole]

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return whole if self.axis is None else whole.chunk(size, self.axis)[rank]


@dataclass(frozen=True)
class InterleavedQKV:
    """Published rows: all queries, all keys, all values. Megatron's: per KV group its queries, its key, its value."""

    groups: int
    queries_per_group: int
    head_dim: int

    def merge(self, published: Tensors) -> torch.Tensor:
        heads = published[0].unflatten(0, (-1, self.head_dim))
        q, k, v = heads.split((self.groups * self.queries_per_group, self.groups, self.groups))
        q = q.unflatten(0, (self.groups, self.queries_per_group))
        return torch.cat((q, k[:, None], v[:, None]), dim=1).flatten(0, 2)

    def split(self, whole: torch.Tensor) -> Tensors:
        rows = whole.unflatten(0, (self.groups, self.queries_per_group + 2, self.head_dim))
        q, k, v = rows[:, :-2].flatten(0, 2), rows[:, -2].flatten(0, 1), rows[:, -1].flatten(0, 1)
        return [torch.cat((q, k, v))]

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return whole.chunk(size)[rank]


@dataclass(frozen=True)
class GateUp:
    """gate and up projections, one above the other; each rank holds its rows of both."""

    def merge(self, published: Tensors) -> torch.Tensor:
        return torch.cat(published)

    def split(self, whole: torch.Tensor) -> Tensors:
        return list(whole.chunk(2))

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])


@dataclass(frozen=True)
class StackedGateUp:
    """[experts, 2, width, hidden] from gate_0, up_0, gate_1, up_1, …"""

    def merge(self, published: Tensors) -> torch.Tensor:
        return torch.stack(published).unflatten(0, (-1, 2))

    def split(self, whole: torch.Tensor) -> Tensors:
        return list(whole.flatten(0, 1))

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return whole.chunk(size, 2)[rank]


@dataclass(frozen=True)
class StackedDown:
    """[experts, hidden, width] from down_0, down_1, …"""

    def merge(self, published: Tensors) -> torch.Tensor:
        return torch.stack(published)

    def split(self, whole: torch.Tensor) -> Tensors:
        return list(whole)

    def shard(self, whole: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return whole.chunk(size, 2)[rank]


@dataclass(frozen=True)
class Rule:
    """`parameter` (a name in the local model) is `form` of the published tensors `sources`."""

    parameter: str
    sources: tuple[str, ...]
    form: Form
    split_over: Literal["tensor", "expert_tensor"] = "tensor"


def _mlp_rules(parameter: str, source: str) -> list[Rule]:
    return [
        Rule(f"{parameter}.linear_fc1.weight", (f"{source}.gate_proj.weight", f"{source}.up_proj.weight"), GateUp()),
        Rule(f"{parameter}.linear_fc2.weight", (f"{source}.down_proj.weight",), Same(axis=1)),
    ]


def _layer_rules(model: ModelConfig, local: int, layer: int, experts: range) -> list[Rule]:
    to, source = f"decoder.layers.{local}", f"model.layers.{layer}"
    per_group = model.num_attention_heads // model.num_key_value_heads
    qkv = InterleavedQKV(model.num_key_value_heads, per_group, model.head_dim)
    rules = [
        Rule(f"{to}.input_layernorm.weight", (f"{source}.input_layernorm.weight",), Same()),
        Rule(f"{to}.self_attention.linear_qkv.weight", (f"{source}.attention.query_key_value.weight",), qkv),
        Rule(f"{to}.self_attention.linear_proj.weight", (f"{source}.attention.dense.weight",), Same(axis=1)),
        Rule(f"{to}.pre_mlp_layernorm.weight", (f"{source}.post_attention_layernorm.weight",), Same()),
    ]
    if not model.is_moe_layer(layer):
        return rules + _mlp_rules(f"{to}.mlp", f"{source}.mlp")
    gates_and_ups = tuple(
        f"{source}.mlp.experts.{expert}.{name}_proj.weight" for expert in experts for name in ("gate", "up")
    )
    downs = tuple(f"{source}.mlp.experts.{expert}.down_proj.weight" for expert in experts)
    rules += [
        Rule(f"{to}.mlp.router.weight", (f"{source}.mlp.gate.weight",), Same()),
        Rule(f"{to}.mlp.experts.gate_up", gates_and_ups, StackedGateUp(), "expert_tensor"),
        Rule(f"{to}.mlp.experts.down", downs, StackedDown(), "expert_tensor"),
    ]
    if model.num_shared_experts:
        rules += _mlp_rules(f"{to}.mlp.shared_experts", f"{source}.mlp.shared_experts")
    return rules


def rules_for(
    model: ModelConfig, layers: range | None = None, experts: range | None = None,
    first_stage: bool = True, last_stage: bool = True,
) -> list[Rule]:  # fmt: skip
    """Rules of the process that holds `layers`, `experts` and, by stage, the embedding and the head (default: all)."""
    layers = layers if layers is not None else range(model.num_layers)
    experts = experts if experts is not None else range(model.num_experts)
    rules = []
    if first_stage:
        rules.append(Rule("embedding.word_embeddings.weight", ("model.word_embeddings.weight",), Same(axis=0)))
    for local, layer in enumerate(layers):
        rules += _layer_rules(model, local, layer, experts)
    if last_stage:
        rules.append(Rule("decoder.final_layernorm.weight", ("model.norm.weight",), Same()))
        rules.append(Rule("output_layer.weight", ("lm_head.weight",), Same(axis=0)))
    return rules


def published_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the published layout."""
    hidden, head = model.hidden_size, model.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.word_embeddings.weight": (model.vocab_size, hidden)}

    def add_mlp(prefix: str, width: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = shapes[f"{prefix}.up_proj.weight"] = (width, hidden)
        shapes[f"{prefix}.down_proj.weight"] = (hidden, width)

    for layer in range(model.num_layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        rows = (model.num_attention_heads + 2 * model.num_key_value_heads) * head
        shapes[f"{prefix}.attention.query_key_value.weight"] = (rows, hidden)
        shapes[f"{prefix}.attention.dense.weight"] = (hidden, model.num_attention_heads * head)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        if not model.is_moe_layer(layer):
            add_mlp(f"{prefix}.mlp", model.dense_width)
            continue
        shapes[f"{prefix}.mlp.gate.weight"] = (model.num_experts, hidden)
        for expert in range(model.num_experts):
            add_mlp(f"{prefix}.mlp.experts.{expert}", model.expert_width)
        if model.num_shared_experts:
            add_mlp(f"{prefix}.mlp.shared_experts", model.shared_width)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return shapes
