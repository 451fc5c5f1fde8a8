"""How published (`bailing_moe`) tensors and this project's tensors correspond: one declared, invertible list of rules.

Every published tensor is exactly one box of exactly one of our tensors (`target`), rows possibly in another order. Import,
export, loading under any parallel layout and random initialisation all go through this list. Ours differ in three ways:

    query, key and value rows are interleaved per KV group   (published: all queries, all keys, all values)
    gate and up projections lie one above the other
    an expert bias, fp32, has the name that the next published family (bailing_moe_v2) has for it
    experts are stacked: gate_up [E, 2, f, hidden], down [E, hidden, f]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_ring.config.declarations import SCORE, Kind, Shape, Weight, declared_weights
from megatron_ring.config.model import ModelConfig

EXPERT_BIAS = ".mlp.gate.expert_bias"


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor: where it begins and how large it is, per axis."""

    offset: Shape
    size: Shape

    @staticmethod
    def whole(shape: Shape) -> Box:
        return Box((0,) * len(shape), tuple(shape))

    @property
    def end(self) -> Shape:
        return tuple(o + s for o, s in zip(self.offset, self.size, strict=True))

    def meet(self, other: Box) -> Box | None:
        """What two boxes of one tensor have in common."""
        offset = tuple(max(a, b) for a, b in zip(self.offset, other.offset, strict=True))
        end = tuple(min(a, b) for a, b in zip(self.end, other.end, strict=True))
        size = tuple(e - o for o, e in zip(offset, end, strict=True))
        return Box(offset, size) if all(s > 0 for s in size) else None

    def run_in(self, outer: Box) -> int | None:
        """The number of its first element in a row-major tensor that holds `outer`, where all of it lies there in one run;
        else None."""
        split = next((i for i, size in enumerate(self.size) if size > 1), len(self.size))
        if self.size[split + 1 :] != outer.size[split + 1 :]:
            return None
        first = 0
        for begin, start, size in zip(self.offset, outer.offset, outer.size, strict=True):
            first = first * size + begin - start
        return first

    def slices(self, outer: Box) -> tuple[slice, ...]:
        """Index of this box in a tensor that holds `outer`."""
        return tuple(slice(o - b, o - b + s) for o, b, s in zip(self.offset, outer.offset, self.size, strict=True))


@dataclass(frozen=True)
class InterleavedQKV:
    """Published rows: all queries, all keys, all values. Ours: per KV group its queries, its key, its value."""

    groups: int
    queries_per_group: int
    head_dim: int

    def to_ours(self, published: torch.Tensor) -> torch.Tensor:
        heads = published.unflatten(0, (-1, self.head_dim))
        q, k, v = heads.split((self.groups * self.queries_per_group, self.groups, self.groups))
        q = q.unflatten(0, (self.groups, self.queries_per_group))
        return torch.cat((q, k[:, None], v[:, None]), dim=1).flatten(0, 2)

    def to_published(self, ours: torch.Tensor) -> torch.Tensor:
        rows = ours.unflatten(0, (self.groups, self.queries_per_group + 2, self.head_dim))
        return torch.cat((rows[:, :-2].flatten(0, 2), rows[:, -2].flatten(0, 1), rows[:, -1].flatten(0, 1)))


@dataclass(frozen=True)
class Rule:
    """Published tensor `source` of `shape` is `box` of our `target` of `target_shape`.

    kind: what the tensor is, for initialisation, as a `Weight` has it.
    """

    source: str
    shape: Shape
    target: str
    target_shape: Shape
    box: Box
    order: InterleavedQKV | None = None
    kind: Kind = "matrix"

    def to_ours(self, published: torch.Tensor) -> torch.Tensor:
        """The box's content, in our order and shape."""
        ordered = published if self.order is None else self.order.to_ours(published)
        return ordered.view(self.box.size)

    def to_published(self, content: torch.Tensor) -> torch.Tensor:
        """Undo `to_ours`."""
        flat = content.view(self.shape)
        return flat if self.order is None else self.order.to_published(flat)


def _same(source: str, target: Weight, order: InterleavedQKV | None = None) -> Rule:
    return Rule(source, target.shape, target.name, target.shape, Box.whole(target.shape), order, target.kind)


def _mlp_rules(source: str, target: str, declared: dict[str, Weight]) -> list[Rule]:
    """One SwiGLU MLP: gate and up become the upper and lower half of linear_fc1."""
    first = declared[f"{target}.linear_fc1.weight"]
    half = (first.shape[0] // 2, first.shape[1])
    halves = [
        Rule(f"{source}.{name}_proj.weight", half, first.name, first.shape, Box(at, half))
        for name, at in (("gate", (0, 0)), ("up", (half[0], 0)))
    ]
    return [*halves, _same(f"{source}.down_proj.weight", declared[f"{target}.linear_fc2.weight"])]


def _expert_rules(source: str, target: str, expert: int, declared: dict[str, Weight]) -> list[Rule]:
    gate_up, down = declared[f"{target}.experts.gate_up"], declared[f"{target}.experts.down"]
    source, shape = f"{source}.experts.{expert}", gate_up.shape[2:]
    first = [
        Rule(f"{source}.{name}_proj.weight", shape, gate_up.name, gate_up.shape, Box((expert, half, 0, 0), (1, 1, *shape)))
        for half, name in enumerate(("gate", "up"))
    ]
    box = Box((expert, 0, 0), (1, *down.shape[1:]))
    return [*first, Rule(f"{source}.down_proj.weight", down.shape[1:], down.name, down.shape, box)]


def _layer_rules(model: ModelConfig, layer: int, declared: dict[str, Weight]) -> list[Rule]:
    to, source = f"decoder.layers.{layer}", f"model.layers.{layer}"
    per_group = model.num_attention_heads // model.num_key_value_heads
    order = InterleavedQKV(model.num_key_value_heads, per_group, model.head_dim)
    qkv, from_qkv = f"{to}.self_attention.linear_qkv", f"{source}.attention.query_key_value"
    rules = [
        _same(f"{source}.input_layernorm.weight", declared[f"{to}.input_layernorm.weight"]),
        _same(f"{from_qkv}.weight", declared[f"{qkv}.weight"], order),
    ]
    if model.qkv_bias:
        rules.append(_same(f"{from_qkv}.bias", declared[f"{qkv}.bias"], order))
    rules += [
        _same(f"{source}.attention.dense.weight", declared[f"{to}.self_attention.linear_proj.weight"]),
        _same(f"{source}.post_attention_layernorm.weight", declared[f"{to}.pre_mlp_layernorm.weight"]),
    ]
    if not model.is_moe_layer(layer):
        return rules + _mlp_rules(f"{source}.mlp", f"{to}.mlp", declared)
    rules.append(_same(f"{source}.mlp.gate.weight", declared[f"{to}.mlp.router.weight"]))
    if model.expert_bias:  # a buffer, so no declared weight
        rules.append(_same(source + EXPERT_BIAS, Weight(f"{to}.mlp.router.expert_bias", (model.num_experts,), kind="bias")))
    for expert in range(model.num_experts):
        rules += _expert_rules(f"{source}.mlp", f"{to}.mlp", expert, declared)
    if model.num_shared_experts:
        rules += _mlp_rules(f"{source}.mlp.shared_experts", f"{to}.mlp.shared_experts", declared)
    return rules


def rules_for(model: ModelConfig) -> list[Rule]:
    """The rules of every published tensor of `model`, in the order of the published files."""
    declared = {weight.name: weight for weight in declared_weights(model)}
    rules = [_same("model.word_embeddings.weight", declared["embedding.word_embeddings.weight"])]
    for layer in range(model.num_layers):
        rules += _layer_rules(model, layer, declared)
    rules.append(_same("model.norm.weight", declared["decoder.final_layernorm.weight"]))
    if model.head == "score":
        rules.append(_same("score.weight", declared[SCORE]))
    else:
        rules.append(_same("lm_head.weight", declared["output_layer.weight"]))
    return rules


def kept_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """What the published tensor `name` becomes where all become `dtype`: the steps of a bias are too small for bf16, and a
    reward model's score is fp32 beside any weights."""
    return torch.float32 if name.endswith(EXPERT_BIAS) or name == SCORE else dtype


def published_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of the published layout."""
    return {rule.source: rule.shape for rule in rules_for(model)}
