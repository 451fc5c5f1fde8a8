"""How many packed sequences go through the model together: they fit the memory plan, and more would not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.config.micro_batches import packs_of_micro_batches
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import PRESETS, RING_LITE, RING_TINY
from megatron_ring.config.reward_model import PreferenceDataConfig, RewardModelConfig
from megatron_ring.config.sft import SFTConfig, SFTDataConfig
from megatron_ring.errors import UserError
from megatron_ring.planning.memory import OUTSIDE_TORCH, plan_memory
from megatron_ring.planning.packs import choose_packs, halved_packs, packed_work
from megatron_ring.planning.sizes import LENGTHS, USABLE
from tests.planning.test_sizes import H100, H200, SMOL

HERE = Path("nowhere")
SLICE = PRESETS["ring-lite-slice-4"]


def config(context: int, batch: int, tokens: Any = "auto", parallel: ParallelConfig | None = None, **more: Any) -> SFTConfig:
    data = SFTDataConfig(train=HERE, tokenizer=HERE, context_length=context, global_batch=batch, micro_batch_tokens=tokens)
    return SFTConfig(run_dir=HERE, data=data, parallel=parallel or ParallelConfig(), **more)


def peak(asked: SFTConfig, shape: ModelConfig, world: int, limit: int) -> int:
    work = packed_work(asked, asked.parallel.data(world))
    return plan_memory(shape, asked.parallel, world, 2, work, limit).training_peak + OUTSIDE_TORCH


@given(packs=st.integers(1, 300), most=st.integers(1, 400), equal=st.booleans())
def test_micro_batches_hold_a_share(packs: int, most: int, equal: bool) -> None:
    sizes = packs_of_micro_batches(packs, most, equal)
    assert sum(sizes) == packs and min(sizes) >= 1 and max(sizes) <= most
    fewest = -(-packs // most)
    if equal:
        assert len(set(sizes)) == 1
        assert not any(packs % count == 0 for count in range(fewest, len(sizes)))
    else:
        assert len(sizes) == fewest and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("shape", "context", "batch", "world", "parallel", "limit", "packs"),
    [
        (RING_TINY, 512, 8, 1, ParallelConfig(), H200, 8),
        (SMOL, 4096, 2, 1, ParallelConfig(), H200, 2),
        (SMOL, 4096, 16, 1, ParallelConfig(), H200, 16),
        (SMOL, 4096, 34, 1, ParallelConfig(), H200, 12),  # three micro-batches, of 12, 11 and 11
        (SMOL, 4096, 16, 1, ParallelConfig(), int(32e9), 2),
        (SLICE, 8192, 64, 2, ParallelConfig(), H100, 6),
        (RING_LITE, 32_768, 256, 8, ParallelConfig(expert=8), H100, 1),
        (RING_LITE, 4096, 256, 8, ParallelConfig(expert=8), H100, 11),
        (RING_LITE, 4096, 256, 8, ParallelConfig(expert=4, pipeline=2), H100, 8),
    ],
)
def test_what_is_chosen_fits_and_no_more_does(
    shape: ModelConfig, context: int, batch: int, world: int, parallel: ParallelConfig, limit: int, packs: int
) -> None:
    asked = config(context, batch, parallel=parallel, recompute="full" if shape is RING_LITE else "none")
    chosen, told = choose_packs(asked, shape, world, 2, limit)
    data_size = parallel.data(world)
    assert max(chosen.micro_batches(data_size)) == packs and chosen.data.micro_batch_tokens == packs * context
    assert f"micro-batches of {packs * context:,} tokens" in told and "of a GPU" in told
    chosen.check(data_size)
    assert packs == 1 or peak(chosen, shape, world, limit) <= USABLE * limit
    most = batch // data_size if parallel.pipeline == 1 else batch // data_size // (4 * parallel.pipeline)
    for number in {min(length // context, most) for length in LENGTHS}:
        longer = replace(chosen, data=replace(chosen.data, micro_batch_tokens=max(1, number) * context))
        larger = max(longer.micro_batches(data_size)) > packs
        assert not larger or peak(longer, shape, world, limit) > USABLE * limit
    assert choose_packs(chosen, shape, world, 2, limit) == (chosen, "")


@pytest.mark.parametrize(("batch", "sizes"), [(64, [8] * 8), (32, [4] * 8), (8, [1] * 8), (4, [1] * 4), (36, [4] * 9)])
def test_a_pipeline_stays_filled(batch: int, sizes: list[int]) -> None:
    """Four micro-batches a stage, where a step has so many packs; all alike."""
    chosen, _ = choose_packs(config(512, batch, parallel=ParallelConfig(pipeline=2)), SMOL, 2, 2, H200)
    assert chosen.micro_batches(1) == sizes


def test_a_cpu_takes_few_tokens() -> None:
    for context, sizes in ((512, [1] * 8), (4096, [1] * 8), (160, [3, 3, 2]), (16, [8])):
        chosen, told = choose_packs(config(context, 8), RING_TINY, 1, 4, None)
        assert chosen.micro_batches(1) == sizes and f"{max(sizes) * context:,} tokens (" in told
        assert told.endswith("chosen for a CPU")


def test_numbers_are_left_alone_and_the_size_of_the_run_so_far_is_kept() -> None:
    fixed = config(4096, 16, 10_000)
    assert choose_packs(fixed, SMOL, 1, 2, H200, {"data": {"micro_batch_tokens": 4096}}) == (fixed, "")
    assert fixed.micro_batches(1) == [2] * 8 and fixed.micro_batches(8) == [2]
    asked = config(4096, 16)

    def kept(data: Any, parallel: ParallelConfig | None = None) -> tuple[list[int], str]:
        on = replace(asked, parallel=parallel or ParallelConfig())
        found, told = choose_packs(on, SMOL, 2, 2, H200, {"data": data})
        return found.micro_batches(on.parallel.data(2)), told

    assert kept({"micro_batch_tokens": 16_384}) == ([4, 4], "")
    assert kept({"micro_batch_tokens": 65_536}, ParallelConfig(pipeline=2)) == ([2] * 8, "")  # a pipeline is filled
    for before in ({"context_length": 4096}, None):  # a run from before sizes were chosen
        assert kept(before) == ([1] * 8, "")
    assert "chosen" in kept({"micro_batch_tokens": "auto"})[1]


def test_halves_hold_a_pack() -> None:
    chosen, _ = choose_packs(config(4096, 14), SMOL, 1, 2, H200)
    for sizes in ([7, 7], [3, 3, 3, 3, 2], [1] * 14):
        smaller = halved_packs(chosen, 1)
        assert smaller is not None and smaller.micro_batches(1) == sizes
        chosen = smaller
    assert halved_packs(chosen, 1) is None


def test_less_than_a_pack_is_refused() -> None:
    with pytest.raises(UserError, match=r"--data.micro-batch-tokens is 511, below --data.context-length 512: "):
        config(512, 8, 511)
    with pytest.raises(UserError, match=r"below --data.context-length 8192"):
        PreferenceDataConfig(train=HERE, tokenizer=HERE, micro_batch_tokens=0)


def test_a_reward_model_chooses_alike() -> None:
    data = PreferenceDataConfig(train=HERE, tokenizer=HERE, context_length=4096, global_batch=16)
    chosen, _ = choose_packs(RewardModelConfig(run_dir=HERE, data=data), replace(SMOL, head="score"), 1, 2, H200)
    assert chosen.data.micro_batch_tokens == 65_536
