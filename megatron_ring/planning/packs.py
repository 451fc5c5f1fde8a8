"""How many packed sequences go through the model together, where `auto` is asked for. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from megatron_ring.config.epochs import EpochsConfig
from megatron_ring.config.micro_batches import packs_of_micro_batches
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.planning.memory import GIB, OUTSIDE_TORCH, Work, plan_memory
from megatron_ring.planning.sizes import LENGTHS, MOMENTS, USABLE

FILLING = 4
"""Micro-batches for each stage of a pipeline that a chosen size leaves: with M of them a step waits (PP - 1) / M of its
time."""
Config = TypeVar("Config", bound=EpochsConfig | PretrainConfig)


def choose_packs(
    config: Config, shape: ModelConfig, world: int, itemsize: int, limit: int | None,
    recorded: Mapping[str, Any] | None = None,
) -> tuple[Config, str]:  # fmt: skip
    """The configuration with a number in the place of `auto`, and what to say of it; "" where nothing was to be chosen.

    Args:
        config: resolved, in a layout that fits.
        itemsize: bytes of a weight.
        limit: bytes that this process may use on its GPU; None on a CPU.
        recorded: the configuration of the run so far, whose size is kept.
    """
    data, pipeline = config.data, config.parallel.pipeline
    if data.micro_batch_tokens != "auto":
        return config, ""
    share = data.global_batch // config.parallel.data(world)
    most = share
    if pipeline > 1:
        most = max(1, data.least_batch // config.parallel.data(world) // (FILLING * pipeline))
    before = _packs_before(recorded, data.pack_tokens)
    if before is not None:
        return _with_packs(config, before if pipeline == 1 else min(before, most)), ""
    packs = max(1, min(most, data.cpu_tokens // data.pack_tokens))
    if limit is not None:
        packs = _most_that_fit(config, shape, world, itemsize, limit, share, most)
    where = "a CPU" if limit is None else f"{limit / GIB:.1f} GiB of a GPU"
    tokens = packs * data.pack_tokens
    return _with_packs(config, packs), f"micro-batches of {tokens:,} tokens ({_said(packs)}), chosen for {where}"


def halved_packs(config: Config, data_size: int) -> Config | None:
    """The configuration with half of the packs in a micro-batch, where memory ran out; None where there is one."""
    packs = max(config.micro_batches(data_size))
    return None if packs == 1 else _with_packs(config, packs // 2)


def packed_work(config: EpochsConfig | PretrainConfig, data_size: int) -> Work:
    """What a rank computes on so many data-parallel ranks, once the size is chosen."""
    sizes = config.micro_batches(data_size)
    return Work(
        tokens=max(sizes) * config.data.pack_tokens, micro_batches=len(sizes), recompute=config.recompute,
        moment_itemsize=MOMENTS[config.optimizer.moments],
    )  # fmt: skip


def _said(packs: int) -> str:
    return "one sequence each" if packs == 1 else f"{packs} sequences each"


def _with_packs(config: Config, packs: int) -> Config:
    data: Any = replace(config.data, micro_batch_tokens=packs * config.data.pack_tokens)
    return replace(config, data=data)


def _packs_before(recorded: Mapping[str, Any] | None, context: int) -> int | None:
    """Packs of a micro-batch of the run so far; None where it has not begun. Runs from before there was a choice had one."""
    if recorded is None:
        return None
    data = recorded.get("data")
    tokens = data.get("micro_batch_tokens", context) if isinstance(data, Mapping) else context
    return max(1, tokens // context) if isinstance(tokens, int) else None


def _most_that_fit(
    config: EpochsConfig | PretrainConfig, shape: ModelConfig, world: int, itemsize: int, limit: int, share: int, most: int
) -> int:
    """Of up to `most` packs of a rank's `share`, as many as the memory plan has room for; one in any case."""
    data_size, tried = config.parallel.data(world), 0
    for length in LENGTHS:
        packs = min(most, length // config.data.pack_tokens)
        if packs <= 1:
            break
        largest = max(packs_of_micro_batches(share, packs, config.parallel.pipeline > 1))
        if largest == tried:
            continue
        tried = largest
        work = packed_work(_with_packs(config, largest), data_size)
        plan = plan_memory(shape, config.parallel, world, itemsize, work, limit)
        if plan.training_peak + OUTSIDE_TORCH <= USABLE * limit:
            return largest
    return 1
