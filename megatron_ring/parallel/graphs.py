"""Work captured as CUDA graphs: launched by one call, with the memory of its intermediate results shared by all graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Graphs:
    """Captures of one owner. They must not run at the same time, and end with it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` asks of the device, without doing it; the result does it. `work` must have run before (kernels
        are compiled, communicators made), and read and write tensors that stay where they are."""
        graph = torch.cuda.CUDAGraph()
        # NCCL's watchdog asks for events meanwhile: only this thread must not.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
