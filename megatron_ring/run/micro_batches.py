"""The size of micro-batches of packed sequences: chosen when a run opens, halved where its first step has no room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from megatron_ring.config.epochs import EpochsConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.errors import MemoryRanOutError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext, world_size_from_environment
from megatron_ring.parallel.device import free_memory
from megatron_ring.planning.packs import choose_packs, halved_packs
from megatron_ring.run.directory import recorded_settings
from megatron_ring.run.smaller import SmallerSizes
from megatron_ring.run.stage import dtype_of

Config = TypeVar("Config", bound=EpochsConfig | PretrainConfig)


def choose(config: Config, shape: ModelConfig) -> tuple[Config, str]:
    """The configuration with the size of micro-batches, on all processes alike: that of the run so far, or what fits; and
    what to say of it."""
    free = collectives.gather_over_world(free_memory())
    limit = None if free[0] is None else min(size or 0 for size in free)
    world, itemsize = world_size_from_environment(), dtype_of(config).itemsize
    return collectives.from_main(
        lambda: choose_packs(config, shape, world, itemsize, limit, recorded_settings(config.run_dir))
    )


@contextmanager
def room_for(step: int, config: EpochsConfig | PretrainConfig, context: ParallelContext, may_shrink: bool) -> Iterator[None]:
    """Around a step, counted from 1.

    Raises:
        SmallerSizes: memory ran out, sizes may shrink, and this is the only process.
        MemoryRanOutError: memory ran out otherwise; names the flag to lower.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        smaller = halved_packs(config, context.data_size)
        said = f"rank {context.rank}: step {step} ran out of GPU memory"
        if smaller is None:
            length = "--data.sequence-length" if isinstance(config, PretrainConfig) else "--data.context-length"
            raise MemoryRanOutError(f"{said}: try {length} or --recompute full") from error
        tokens = smaller.data.micro_batch_tokens
        if not may_shrink or context.world_size > 1:
            raise MemoryRanOutError(f"{said}: try --data.micro-batch-tokens {tokens}") from error
        print(f"{config.stage_name}: {said}: beginning anew with micro-batches of {tokens:,} tokens", flush=True)
        raise SmallerSizes(smaller) from None
