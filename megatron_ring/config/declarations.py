"""Every weight of a model, declared once: name, shape, how it is split over processes. Imports no torch.

The modules in `model/` take the shapes of their parameters from here, so do the tensor rules of `checkpoint/` and the memory
plan in `planning/`. All weights of a model have one dtype, but for a reward model's score, which is fp32. A test compares
the list with models really built.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig

Shape = tuple[int, ...]
Ranks = Literal["tensor", "expert", "expert_tensor"]
Kind = Literal["matrix", "norm", "bias", "score"]

VOCABULARY_TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
SCORE = "score.weight"
CHUNK_LOGITS = 3 << 27
"""Elements of the logits that the head makes at a time: 3,072 tokens of 126,464 classes, 0.8 GB in bf16."""
SPARE_PAGES = 2
"""Pages of the KV cache that each row gets beside its tokens' own: the last page of a prompt is held beside its copies, and
admission wants one to spare."""
CACHE_SLACK = 1.125
"""Pages of a KV cache that is kept from step to step, over those that the first needs: later ones need more or fewer."""
FP8_BLOCK = 128
"""Columns of a matrix in FP8 that lie together; what does not divide is padded."""


@dataclass(frozen=True)
class Weight:
    """One parameter of the whole model.

    Attributes:
        name: as in checkpoints; a layer has its number among all layers. Relative to its module in a module's list.
        shape: of the whole tensor.
        splits: (axis, ranks that share it). Everything else is the same on all ranks.
        kind: how it starts: a matrix drawn at random, a norm's scale (ones), a bias (zeros), a score (drawn smaller).
        place: the 0-based layer, or the pipeline stage.
    """

    name: str
    shape: Shape
    splits: tuple[tuple[int, Ranks], ...] = ()
    kind: Kind = "matrix"
    place: int | Literal["first stage", "last stage"] = 0

    @property
    def size(self) -> int:
        """Elements of the whole tensor."""
        return prod(self.shape)

    @property
    def expert(self) -> bool:
        """Whether it belongs to routed experts: gradients are reduced over the ranks that hold the same experts."""
        return any(ranks == "expert" for _, ranks in self.splits)

    def axis_of(self, ranks: Ranks) -> int | None:
        """The axis that is split over `ranks`."""
        return next((axis for axis, by in self.splits if by == ranks), None)

    def local_shape(self, parallel: ParallelConfig) -> Shape:
        """What one rank holds. A vocabulary that does not divide is padded; every other size divides, see
        `ParallelConfig.check`."""
        shape = list(self.shape)
        for axis, ranks in self.splits:
            shape[axis] = -(-shape[axis] // getattr(parallel, ranks))
        return tuple(shape)


def fp8_bytes(shape: Shape) -> int:
    """Of a weight in FP8, with an fp32 scale for each of its rows."""
    return prod(shape[:-1]) * (-(-shape[-1] // FP8_BLOCK) * FP8_BLOCK + 4)


def attention_weights(model: ModelConfig) -> dict[str, Weight]:
    """Of one layer's attention, by name within it."""
    rows, width = model.qkv_rows, model.num_attention_heads * model.head_dim
    found = [Weight("linear_qkv.weight", (rows, model.hidden_size), ((0, "tensor"),))]
    if model.qkv_bias:
        found.append(Weight("linear_qkv.bias", (rows,), ((0, "tensor"),), "bias"))
    found.append(Weight("linear_proj.weight", (model.hidden_size, width), ((1, "tensor"),)))
    return _by_name(found)


def mlp_weights(model: ModelConfig, width: int) -> dict[str, Weight]:
    """Of a SwiGLU MLP, by name within it: gates lie above ups in the first."""
    first = Weight("linear_fc1.weight", (2 * width, model.hidden_size), ((0, "tensor"),))
    return _by_name([first, Weight("linear_fc2.weight", (model.hidden_size, width), ((1, "tensor"),))])


def moe_weights(model: ModelConfig) -> dict[str, Weight]:
    """Of one layer's router, routed experts and shared experts, by name within the layer's MoE module."""
    count, width, hidden = model.num_experts, model.expert_width, model.hidden_size
    found = [
        Weight("router.weight", (count, hidden)),
        Weight("experts.gate_up", (count, 2, width, hidden), ((0, "expert"), (2, "expert_tensor"))),
        Weight("experts.down", (count, hidden, width), ((0, "expert"), (2, "expert_tensor"))),
    ]
    if model.shared_width:
        found += _under("shared_experts.", mlp_weights(model, model.shared_width))
    return _by_name(found)


def layer_weights(model: ModelConfig, layer: int) -> dict[str, Weight]:
    """Of the 0-based layer, by name within it."""
    norm = Weight("input_layernorm.weight", (model.hidden_size,), kind="norm")
    mlp = moe_weights(model) if model.is_moe_layer(layer) else mlp_weights(model, model.dense_width)
    found = [norm, *_under("self_attention.", attention_weights(model)), replace(norm, name="pre_mlp_layernorm.weight")]
    return {weight.name: replace(weight, place=layer) for weight in [*found, *_under("mlp.", mlp)]}


def declared_weights(model: ModelConfig) -> list[Weight]:
    """All weights, in the model's order."""
    table: Shape = (model.vocab_size, model.hidden_size)
    embedding, head = VOCABULARY_TABLES
    found = [Weight(embedding, table, ((0, "tensor"),), place="first stage")]
    for layer in range(model.num_layers):
        found += _under(f"decoder.layers.{layer}.", layer_weights(model, layer))
    found.append(Weight("decoder.final_layernorm.weight", (model.hidden_size,), kind="norm", place="last stage"))
    if model.head == "score":
        found.append(Weight(SCORE, (1, model.hidden_size), kind="score", place="last stage"))
    else:
        found.append(Weight(head, table, ((0, "tensor"),), place="last stage"))
    return found


def stage_weights(model: ModelConfig, parallel: ParallelConfig, stage: int) -> dict[str, Weight]:
    """The weights of a pipeline stage in order, by the names of its parameters there: layers are counted from its first."""
    layers = parallel.stage_layers(model.num_layers, stage)
    last = parallel.pipeline - 1
    found = {}
    for weight in declared_weights(model):
        if isinstance(weight.place, int):
            if weight.place in layers:
                within = weight.name.removeprefix(f"decoder.layers.{weight.place}.")
                found[f"decoder.layers.{weight.place - layers.start}.{within}"] = weight
        elif stage == (0 if weight.place == "first stage" else last):
            found[weight.name] = weight
    return found


def parameter_counts(model: ModelConfig) -> tuple[int, int]:
    """(total, activated) parameters. Activated, as published for Ring-lite, counts the experts of one token and everything
    that all tokens share: attention, norms, router, shared experts, both vocabulary tables."""
    weights = declared_weights(model)
    experts = sum(weight.size for weight in weights if weight.expert)
    shared = sum(weight.size for weight in weights if not weight.expert)
    return shared + experts, shared + experts // model.num_experts * model.experts_per_token


def chunk_tokens(classes: int, elements: int = CHUNK_LOGITS) -> int:
    """Tokens whose logits the head makes at a time on a GPU, with so many classes on a rank: whole tiles of the products."""
    size = max(1, elements // classes)
    return size - size % 256 if size > 256 else size


def kv_bytes(model: ModelConfig, parallel: ParallelConfig, layers: int, itemsize: int) -> int:
    """Keys and values of one token on a rank with so many layers, in bytes."""
    return 2 * layers * (model.num_key_value_heads // parallel.tensor) * model.head_dim * itemsize


def route_itemsize(model: ModelConfig) -> int:
    """Bytes that name one expert where the experts of tokens are kept."""
    return 1 if model.num_experts <= 256 else 2


def _by_name(weights: list[Weight]) -> dict[str, Weight]:
    return {weight.name: weight for weight in weights}


def _under(prefix: str, weights: dict[str, Weight]) -> list[Weight]:
    return [replace(weight, name=prefix + weight.name) for weight in weights.values()]
