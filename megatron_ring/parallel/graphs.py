"""Work captured as CUDA graphs: launched by one call, with the memory of its intermediate results shared by all graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker


@contextmanager
def steady_random_state() -> Iterator[None]:
    """Above TP=1 megatron-core's blocks change the random state around dropouts, also those that are off; no graph may
    hold that. Meanwhile they leave it alone: nothing may draw from it."""
    tracker = get_cuda_rng_tracker()
    tracker.fork = lambda *_, **__: nullcontext()  # type: ignore[method-assign]
    try:
        yield
    finally:
        del tracker.fork


class Graphs:
    """Captures of one owner. They must not run at the same time, and end with it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` asks of the device, without doing it; the result does it. `work` must have run before (kernels
        are compiled, communicators made), and read and write tensors that stay where they are."""
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog asks for events meanwhile: only this thread must not.
        with steady_random_state(), torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
