"""The parameters that one process holds, by name and shape, as `model.RingModel` builds them; and the bytes that
megatron-core's buffers and distributed optimizer make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig

FP32 = 4
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128  # elements, of megatron-core's parameter-and-gradient buffers


class Weight(NamedTuple):
    """One parameter: `expert` ones are reduced over expert-data-parallel ranks, the others over data-parallel ranks."""

    name: str
    shape: tuple[int, ...]
    expert: bool

    @property
    def size(self) -> int:
        return prod(self.shape)


def stage_weights(model: ModelConfig, parallel: ParallelConfig, stage: int) -> list[Weight]:
    """Parameters of a rank of a pipeline stage, in the model's order. The same on all its ranks."""
    hidden = model.hidden_size
    vocabulary = parallel.padded_vocabulary(model.vocab_size) // parallel.tensor
    found = [Weight("embedding.word_embeddings.weight", (vocabulary, hidden), False)] if stage == 0 else []
    for local, layer in enumerate(parallel.stage_layers(model.num_layers, stage)):
        for weight in _layer_weights(model, parallel, layer):
            found.append(weight._replace(name=f"decoder.layers.{local}.{weight.name}"))
    if stage == parallel.pipeline - 1:
        found.append(Weight("decoder.final_layernorm.weight", (hidden,), False))
        found.append(Weight("output_layer.weight", (vocabulary, hidden), False))
    return found


def _layer_weights(model: ModelConfig, parallel: ParallelConfig, layer: int) -> Iterator[Weight]:
    hidden, tensor = model.hidden_size, parallel.tensor
    yield Weight("input_layernorm.weight", (hidden,), False)
    yield Weight("self_attention.linear_qkv.weight", (model.qkv_rows // tensor, hidden), False)
    if model.qkv_bias:
        yield Weight("self_attention.linear_qkv.bias", (model.qkv_rows // tensor,), False)
    query_width = model.num_attention_heads * model.head_dim // tensor
    yield Weight("self_attention.linear_proj.weight", (hidden, query_width), False)
    yield Weight("pre_mlp_layernorm.weight", (hidden,), False)
    if not model.is_moe_layer(layer):
        yield from _mlp("mlp", model.dense_width // tensor, hidden)
        return
    yield Weight("mlp.router.weight", (model.num_experts, hidden), False)
    experts, width = model.num_experts // parallel.expert, model.expert_width // parallel.expert_tensor
    yield Weight("mlp.experts.gate_up", (experts, 2, width, hidden), True)
    yield Weight("mlp.experts.down", (experts, hidden, width), True)
    if model.shared_width:
        yield from _mlp("mlp.shared_experts", model.shared_width // tensor, hidden)


def _mlp(name: str, width: int, hidden: int) -> Iterator[Weight]:
    yield Weight(f"{name}.linear_fc1.weight", (2 * width, hidden), False)
    yield Weight(f"{name}.linear_fc2.weight", (hidden, width), False)


@dataclass(frozen=True)
class TrainingState:
    """Bytes that a rank holds through training, whatever it computes. `parameters` are counts, of dense and expert ones;
    `sharers` the ranks that share the optimizer's work on each."""

    parameters: tuple[int, int]
    sharers: tuple[int, int]
    weights: int
    gradients: int
    optimizer: int
    largest: int
    """The largest parameter, in its own dtype."""


def training_state(
    weights: Sequence[Weight], parallel: ParallelConfig, world: int, itemsize: int, moment_itemsize: int, trains: bool = True
) -> TrainingState:
    """What `weights` need on each of `world` ranks. Without `trains` there are neither gradients nor an optimizer.

    Weights and fp32 gradients lie in one buffer each for dense and expert parameters, every parameter starting at a multiple
    of 64 elements. A rank keeps moments, and where weights are not fp32 an fp32 copy, of its share of each buffer.
    """
    data = parallel.data(world)
    expert_data = world // (parallel.pipeline * parallel.expert * parallel.expert_tensor)
    counts, held, shares = [], 0, 0
    for expert, ranks in ((False, data), (True, expert_data)):
        sizes = [weight.size for weight in weights if weight.expert is expert]
        counts.append(sum(sizes))
        padded = _buffer(sizes, ranks)
        held += padded if trains else sum(sizes)
        shares += padded // ranks
    of_a_share = 2 * moment_itemsize + (FP32 if itemsize != FP32 else 0)
    return TrainingState(
        parameters=(counts[0], counts[1]),
        sharers=(data, expert_data),
        weights=held * itemsize,
        gradients=held * FP32 if trains else 0,
        optimizer=shares * of_a_share if trains else 0,
        largest=max(weight.size for weight in weights) * itemsize,
    )


def _buffer(sizes: Sequence[int], ranks: int) -> int:
    """Elements of a buffer, which megatron-core fills from the last parameter to the first."""
    end = 0
    for size in reversed(sizes):
        end = -(-end // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT + size
    alignment = math.lcm(ranks, BUCKET_ALIGNMENT)
    return -(-end // alignment) * alignment
