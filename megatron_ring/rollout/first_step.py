"""The first step of a run whose sizes the program chose: where it has no room, they are halved, once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import MemoryRanOutError
from megatron_ring.parallel import context
from megatron_ring.parallel.device import return_unused_memory
from megatron_ring.planning.sizes import halved
from megatron_ring.rollout.state import RLState


class SmallerSizes(Exception):  # no error: what to do instead
    """The run is to begin anew in this process. `config`: with half of the sizes that were chosen."""

    def __init__(self, config: RLConfig) -> None:
        super().__init__()
        self.config = config


@contextmanager
def first_step(run: RLState, asked: RLConfig, step: int) -> Iterator[None]:
    """Around the 0-based `step` of a run that was `asked` for.

    Raises:
        SmallerSizes: memory ran out in the first step, sizes were chosen, and this is the only process.
        MemoryRanOutError: memory ran out otherwise; names the flags to lower.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryRanOutError) as error:
        if isinstance(error, MemoryRanOutError) and "--sampling" not in str(error):
            raise
        chosen = "auto" in (asked.data.micro_batch_tokens, asked.sampling.max_batch)
        smaller = halved(run.config, run.longest)
        flags = ""
        if smaller is not None:
            rows = smaller.sampling.max_batch
            flags = f": try --data.micro-batch-tokens {smaller.data.capacity} --sampling.max-batch {rows}"
        said = f"rank {run.stage.context.rank}: step {step + 1} ran out of GPU memory"
        if step > 0 or not chosen or smaller is None or run.stage.context.world_size > 1:
            raise MemoryRanOutError(f"{said}{flags}") from error
        print(
            f"rl: {said}: beginning anew with micro-batches of {smaller.data.capacity:,} tokens and {rows:,} sequences "
            f"decoded together",
            flush=True,
        )  # fmt: skip
        run.directory.close()
        raise SmallerSizes(smaller) from None


def free_everything() -> None:
    """Give back the memory and the groups of a run that nothing refers to any more."""
    context.shutdown()
    gc.collect()
    return_unused_memory()
