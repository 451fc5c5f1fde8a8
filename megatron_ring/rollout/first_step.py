"""The first step of a run whose sizes the program chose: where it has no room, they are halved, once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import MemoryRanOutError
from megatron_ring.planning.sizes import halved
from megatron_ring.rollout.state import RLState
from megatron_ring.run.smaller import SmallerSizes


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
        auto_length, auto_rows = asked.data.micro_batch_tokens == "auto", asked.sampling.max_batch == "auto"
        smaller = halved(run.config, run.longest)
        flags = ""
        if smaller is not None:
            rows = smaller.sampling.max_batch
            flags = f": try --data.micro-batch-tokens {smaller.data.capacity} --sampling.max-batch {rows}"
        said = f"rank {run.stage.context.rank}: step {step + 1} ran out of GPU memory"
        alone = run.stage.context.world_size == 1
        if step > 0 or not (auto_length or auto_rows) or smaller is None or not alone:
            raise MemoryRanOutError(f"{said}{flags}") from error
        if not auto_length:  # what the user has fixed stays
            smaller = replace(smaller, data=run.config.data)
        if not auto_rows:
            smaller = replace(smaller, sampling=run.config.sampling)
        print(
            f"rl: {said}: beginning anew with micro-batches of up to {smaller.data.capacity:,} tokens and "
            f"{smaller.sampling.most_rows('cuda'):,} sequences decoded together",
            flush=True,
        )
        run.directory.close()
        raise SmallerSizes(smaller) from None
