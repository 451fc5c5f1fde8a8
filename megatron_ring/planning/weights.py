"""The bytes that megatron-core's buffers and distributed optimizer make of the weights that one process holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from megatron_ring.config.declarations import Weight, fp8_bytes, stage_weights
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig

FP32 = 4
PARAMETER_ALIGNMENT, BUCKET_ALIGNMENT = 64, 128  # elements, of megatron-core's parameter-and-gradient buffers


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
    model: ModelConfig, parallel: ParallelConfig, stage: int, world: int, itemsize: int, moment_itemsize: int,
    trains: bool = True,
) -> TrainingState:  # fmt: skip
    """What the weights of a pipeline stage need on each of its ranks, all alike, of `world` in all. Without `trains` there
    are neither gradients nor an optimizer.

    Weights and fp32 gradients lie in one buffer each for dense and expert parameters, every parameter starting at a multiple
    of 64 elements. A rank keeps moments, and where weights are not fp32 an fp32 copy, of its share of each buffer.
    """
    data = parallel.data(world)
    expert_data = world // (parallel.pipeline * parallel.expert * parallel.expert_tensor)
    local = local_sizes(model, parallel, stage)
    counts, held, shares = [], 0, 0
    for expert, ranks in ((False, data), (True, expert_data)):
        sizes = [size for weight, size in local if weight.expert is expert]
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
        largest=max(size for _, size in local) * itemsize,
    )


def local_sizes(model: ModelConfig, parallel: ParallelConfig, stage: int) -> list[tuple[Weight, int]]:
    """The weights of a pipeline stage, in the model's order, and how many elements of each one rank holds."""
    return [(weight, prod(weight.local_shape(parallel))) for weight in stage_weights(model, parallel, stage).values()]


def fp8_experts(model: ModelConfig, parallel: ParallelConfig, stage: int) -> int:
    """Bytes of a copy in FP8 of the routed experts that a rank of a pipeline stage holds."""
    experts = [weight for weight, _ in local_sizes(model, parallel, stage) if ".experts." in weight.name]
    return sum(fp8_bytes(weight.local_shape(parallel)) for weight in experts)


def _buffer(sizes: Sequence[int], ranks: int) -> int:
    """Elements of a buffer, which megatron-core fills from the last parameter to the first."""
    end = 0
    for size in reversed(sizes):
        end = -(-end // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT + size
    alignment = math.lcm(ranks, BUCKET_ALIGNMENT)
    return -(-end // alignment) * alignment
