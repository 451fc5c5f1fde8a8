"""The sizes that a run chooses for itself: they fit the memory plan, and longer ones would not."""

from __future__ import annotations

from bisect import bisect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.objective import BudgetConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import PRESETS, RING_LITE
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.planning.memory import OUTSIDE_TORCH, plan_memory
from megatron_ring.planning.sizes import (
    LENGTHS,
    USABLE,
    cache_can_stay,
    choose_sizes,
    halved,
    rl_work,
    with_sizes_of,
)
from megatron_ring.planning.weights import fp8_experts

H100, H200 = int(80e9), int(150e9)
SMOL = ModelConfig(
    num_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152,
    num_experts=8, experts_per_token=2, expert_width=1536, num_shared_experts=0, dense_width=1536,
)  # fmt: skip


def config(new: int = 115, parallel: ParallelConfig | None = None, **changes: Any) -> RLConfig:
    data = RLDataConfig(prompts=Path("p"), tokenizer=Path("t"))
    given = RLConfig(
        run_dir=Path("r"), init_from=Path("i"), data=data, sampling=SamplingConfig(max_new_tokens=new),
        prompts_per_step=64, samples_per_prompt=16, budget=BudgetConfig(tokens=81_920),
        parallel=parallel or ParallelConfig(), **changes,
    )  # fmt: skip
    return given.resolved()


def peak(given: RLConfig, shape: ModelConfig, world: int, tokens: int, longest: int, limit: int) -> int:
    work = rl_work(given, given.parallel.data(world), longest, tokens)
    return plan_memory(shape, given.parallel, world, 2, work, limit).training_peak + OUTSIDE_TORCH


@pytest.mark.parametrize(
    ("shape", "world", "parallel", "new", "limit"),
    [
        (SMOL, 1, ParallelConfig(), 115, H200),
        (PRESETS["ring-lite-slice-4"], 1, ParallelConfig(), 2048, H200),
        (PRESETS["ring-lite-slice-4"], 1, ParallelConfig(), 2048, H100),
        (RING_LITE, 8, ParallelConfig(expert=8), 22_528, H100),
        (RING_LITE, 32, ParallelConfig(expert=4, tensor=2), 22_528, H100),
    ],
)
def test_what_is_chosen_fits_and_no_longer_one_does(
    shape: ModelConfig, world: int, parallel: ParallelConfig, new: int, limit: int
) -> None:
    given, longest = config(new, parallel, recompute="full" if shape is RING_LITE else "none"), new + 1000
    chosen, told = choose_sizes(given, shape, world, 2, longest, limit)
    length, rows = chosen.data.capacity, chosen.sampling.max_batch
    assert f"{length:,}" in told and f"{rows:,} sequences" in told
    assert length >= longest and length % parallel.tensor == 0
    assert peak(given, shape, world, length, longest, limit) <= USABLE * limit
    longer = [tokens for tokens in LENGTHS if tokens > length]
    assert not longer or peak(given, shape, world, min(longer), longest, limit) > USABLE * limit
    requests = -(-64 // parallel.data(world)) * 16
    assert rows == requests or (isinstance(rows, int) and 16 <= rows < requests)
    chosen.check(parallel.data(world))
    assert choose_sizes(chosen, shape, world, 2, longest, limit) == (chosen, "")


def test_a_small_model_on_a_large_gpu_takes_it_whole() -> None:
    chosen, _ = choose_sizes(config(), SMOL, 1, 2, 215, H200)
    assert (chosen.data.capacity, chosen.sampling.max_batch) == (65_536, 1024)
    assert cache_can_stay(chosen, SMOL, 1, 2, 215, H200)
    assert not cache_can_stay(replace(chosen, offload_optimizer=True), SMOL, 1, 2, 215, H200)
    assert not cache_can_stay(chosen, SMOL, 1, 2, 215, int(40e9))


def test_a_copy_in_fp8_stays_where_the_cache_does() -> None:
    """It wants a larger GPU for that, by its own size."""
    chosen, _ = choose_sizes(config(), SMOL, 1, 2, 215, H200)
    chosen = replace(chosen, sampling=replace(chosen.sampling, kv_tokens=100_000))
    narrow = replace(chosen, sampling=replace(chosen.sampling, weights="fp8"))

    def least(asked: RLConfig) -> int:
        megabytes = range(H200 // 10**6)
        return 10**6 * bisect(megabytes, False, key=lambda mb: cache_can_stay(asked, SMOL, 1, 2, 215, 10**6 * mb))

    copy = fp8_experts(SMOL, ParallelConfig(), 0)
    assert copy > 5e8 and least(narrow) - least(chosen) == pytest.approx(copy / USABLE, abs=3e6)


def test_a_large_model_gives_the_cache_back() -> None:
    shape = PRESETS["ring-lite-slice-4"]
    chosen, _ = choose_sizes(config(8192), shape, 1, 2, 8300, H100)
    assert not cache_can_stay(chosen, shape, 1, 2, 8300, H100)


@settings(max_examples=25, deadline=None)
@given(longest=st.integers(116, 60_000), tensor=st.sampled_from([1, 2, 4]))
def test_the_longest_response_always_fits(longest: int, tensor: int) -> None:
    layout = ParallelConfig(tensor=tensor)
    for limit in (None, int(1e9), H200):  # a GPU too small for it: the run says so when it opens
        chosen, _ = choose_sizes(config(parallel=layout), RING_LITE, 4, 2, longest, limit)
        assert chosen.data.capacity >= longest and chosen.data.capacity % tensor == 0


def test_numbers_are_left_alone_and_those_of_the_run_so_far_are_kept() -> None:
    asked = config()
    fixed = replace(asked, data=replace(asked.data, micro_batch_tokens=4096))
    chosen, told = choose_sizes(fixed, SMOL, 1, 2, 215, H200)
    assert chosen.data.capacity == 4096 and "micro-batches" not in told and chosen.sampling.max_batch == 1024
    recorded = {"data": {"micro_batch_tokens": 24_576}, "sampling": {"max_batch": 256}}
    kept = with_sizes_of(asked, recorded)
    assert (kept.data.capacity, kept.sampling.max_batch) == (24_576, 256)
    assert with_sizes_of(fixed, recorded).data.capacity == 4096
    assert with_sizes_of(asked, None) == asked == with_sizes_of(asked, {"data": {}, "sampling": {"max_batch": "auto"}})


def test_halves_hold_the_longest_response() -> None:
    chosen, _ = choose_sizes(config(), SMOL, 1, 2, 215, H200)
    smaller = halved(chosen, 215)
    assert smaller is not None and (smaller.data.capacity, smaller.sampling.max_batch) == (32_768, 512)
    tight = halved(chosen, 40_000)
    assert tight is not None and (tight.data.capacity, tight.sampling.max_batch) == (40_000, 512)
    least = replace(chosen, data=replace(chosen.data, micro_batch_tokens=215))
    assert halved(replace(least, sampling=replace(least.sampling, max_batch=1)), 215) is None


@given(requests=st.integers(1, 5000), room=st.integers(0, 10_000_000), longest=st.integers(1, 40_000))
def test_rows(requests: int, room: int, longest: int) -> None:
    for device, most in (("cuda", 1024), ("cpu", 256)):
        rows = SamplingConfig().rows(device, requests, room, longest)
        assert 1 <= rows <= min(requests, most)
        assert rows in (requests, most) or rows == max(16, room // max(1, longest // 8))
        assert SamplingConfig(max_batch=300).rows(device, requests, room, longest) == min(requests, 300)
