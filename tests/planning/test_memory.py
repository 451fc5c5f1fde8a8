"""The plan of memory against what was measured on a GPU, and what it answers to a change of the settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_ring.config.declarations import chunk_tokens, parameter_counts
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import PRESETS, RING_LITE, RING_TINY
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.planning.activations import MicroBatchPass
from megatron_ring.planning.memory import GIB, OUTSIDE_TORCH, StageMemory, Work, plan_memory, stage_memory
from megatron_ring.planning.weights import fp8_experts, local_sizes

EIGHT = ParallelConfig(expert=8)
SAMPLING = SamplingConfig(max_new_tokens=22_528)
RL = Work(
    tokens=24_576, micro_batches=17, recompute="full", reference="device", sampling=SAMPLING, requests=32, longest=24_576
)  # fmt: skip
H100 = int(80e9)


def plan(world: int = 256, parallel: ParallelConfig = EIGHT, limit: int = H100, **changes: Any) -> StageMemory:
    return plan_memory(RING_LITE, parallel, world, 2, replace(RL, **changes), limit)


def test_the_measured_peak_of_a_slice() -> None:
    """docs/LOG.md: 4 layers, 2 x 8,192 tokens, forward and backward into gradients that were None before, 14.5 GiB at most.

    At that peak there are weights, all that layers keep (SwiGLU's result was not kept then), the head's gradient, and the
    backward pass of the last layer."""
    shape, one = PRESETS["ring-lite-slice-4"], ParallelConfig()
    work = MicroBatchPass(shape, one, 2 * 8192, 2, uneven=False, swiglu_kept=False)
    weights = 2 * sum(size for _, size in local_sizes(shape, one, 0))
    head = 2 * shape.vocab_size * shape.hidden_size
    peak = weights + sum(work.kept(range(4), True, True).values()) + head + work.passing_in_layer(3)
    assert peak / GIB == pytest.approx(14.5, rel=0.02)


def test_the_head_takes_its_logits_in_the_planned_chunks(run_on: Any) -> None:
    """On a GPU: 3,072 tokens of the published vocabulary; of few classes as many as fit."""
    assert chunk_tokens(RING_LITE.vocab_size) == 3072
    assert run_on(1, _head_chunk) == [chunk_tokens(RING_TINY.vocab_size)]


def _head_chunk() -> int:
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    model = build_model(RING_TINY, context.initialize(ParallelConfig(), RING_TINY, seed=0))
    tokens: int = model.output_layer.chunk_tokens(on_cuda=True)
    return tokens


def held(memory: StageMemory) -> dict[str, int]:
    return {item.name: item.size for item in memory.held}


def test_what_data_parallelism_shares() -> None:
    """12 bytes a parameter of optimizer: dense ones over all ranks, experts over those with the same experts."""
    dense = parameter_counts(RING_LITE)[0] - 28 * 64 * 3 * 2048 * 1408
    experts = 28 * 8 * 3 * 2048 * 1408
    for world in (8, 256):
        state = held(plan(world))
        assert state["weights"] == pytest.approx(2 * (dense + experts), rel=1e-5)
        assert state["gradient buffers"] == 2 * state["weights"]
        assert state["optimizer"] == pytest.approx(12 * (dense / world + experts / (world / 8)), rel=1e-5)
        assert state["reference policy"] == 2 * (dense + experts)
    assert held(plan(8, moment_itemsize=2))["optimizer"] == pytest.approx(held(plan(8))["optimizer"] * 8 / 12)
    assert held(plan(8, reference="host"))["reference policy"] == 0


def test_recomputation_keeps_less_and_pipelines_keep_more_at_a_time() -> None:
    peaks = [plan(recompute=name).training_peak for name in ("none", "experts", "full")]
    assert peaks == sorted(peaks, reverse=True) and peaks[2] < H100 < peaks[1]
    stages = ParallelConfig(expert=8, pipeline=4)
    for stage, most in ((0, 4), (3, 1)):  # the first runs ahead of the last
        first = [stage_memory(RING_LITE, stages, 256, 2, replace(RL, micro_batches=n), H100, stage) for n in (1, 2, 4, 17)]
        kept = [memory.training[0].size for memory in first]
        assert kept == [min(number, most) * kept[0] for number in (1, 2, 4, 17)]


def test_the_cache_takes_what_is_left_and_a_run_needs_room_for_its_longest_response() -> None:
    each = 57_344  # bytes of a token, 28 layers, bf16
    roomy = plan()
    assert roomy.cache is not None and roomy.cache.wanted > roomy.cache.tokens
    free = H100 - sum(held(roomy).values()) - OUTSIDE_TORCH
    assert roomy.cache.tokens == int(free * 0.8) // each
    assert roomy.needed <= H100 and roomy.sampling_peak + OUTSIDE_TORCH <= H100
    few = plan(requests=2)
    assert few.cache is not None and few.cache.tokens == few.cache.wanted == 2 * (24_576 + 64)
    tight = plan(limit=int(31e9))
    assert tight.cache is not None and tight.cache.tokens < 24_576
    stated = plan(sampling=replace(SAMPLING, kv_tokens=100_000))
    assert [item.size for item in stated.sampling if item.name == "KV cache"] == [100_000 * each]


def test_what_is_off_the_device_while_sampling_goes_to_the_cache() -> None:
    """8 GPUs, 12 bytes a parameter of optimizer: 23.5 GiB a rank, 1 s at 25 GB/s; and 4 bytes of gradient."""
    here, away = plan(8), plan(8, offload=True)
    assert away.training_peak == here.training_peak and held(away).keys() == {"weights", "reference policy"}
    assert away.cache is not None and here.cache is not None and here.cache.tokens < here.cache.wanted
    free = H100 - sum(held(away).values()) - OUTSIDE_TORCH
    assert away.cache.tokens == min(here.cache.wanted, int(free * 0.8) // 57_344) > here.cache.tokens
    (note,) = (item.note for item in away.sampling if item.name == "optimizer")
    size = held(here)["optimizer"]
    assert size / GIB == pytest.approx(23.5, abs=0.05) and 8 * size / GIB == pytest.approx(187.8, abs=0.05)
    assert note == "23.5 GiB of pinned host memory, 187.8 for 8 GPUs of a node; some 1.0 s each way at 25 GB/s"
    (many,) = (item.note for item in plan(256, offload=True).sampling if item.name == "optimizer")
    assert "for 8 GPUs of a node" in many


def test_an_evaluation_trains_nothing() -> None:
    memory = plan(tokens=None, reference="none")
    assert list(held(memory)) == ["weights"] and memory.training == []
    assert memory.training_peak == held(memory)["weights"]


def test_experts_in_fp8_take_room_from_the_cache() -> None:
    """A byte a weight, 4 a row; the planned bytes are those of a copy that is really made."""
    narrow = replace(SAMPLING, weights="fp8")
    usual, other = plan(), plan(sampling=narrow)
    copy = next(item.size for item in other.sampling if item.name == "experts in FP8")
    hidden, width = RING_LITE.hidden_size, RING_LITE.expert_width
    assert copy == 28 * 8 * (3 * hidden * width + 4 * (2 * width + hidden))
    assert not any(item.name == "experts in FP8" for item in usual.sampling)
    assert usual.cache is not None and other.cache is not None
    token = 28 * 2 * 4 * RING_LITE.head_dim * 2  # layers, keys and values, KV heads, bytes
    assert (usual.cache.tokens - other.cache.tokens) * token == pytest.approx(SAMPLING.kv_fraction * copy, rel=1e-3)


def _copy_bytes() -> int:
    from megatron_ring.model.narrow import NarrowExperts
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context

    model = build_model(RING_TINY, context.initialize(ParallelConfig(), RING_TINY, seed=0))
    return NarrowExperts(model).nbytes


def test_the_planned_copy_in_fp8_is_the_one_made(run_on: Any) -> None:
    (made,) = run_on(1, _copy_bytes)
    assert made == fp8_experts(RING_TINY, ParallelConfig(), 0)
