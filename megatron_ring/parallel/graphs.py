"""Work captured as CUDA graphs: launched by one call, with the memory of its intermediate results shared by all graphs.
And work on a second stream, which a graph holds as a branch of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_ring.parallel.device import current_device, has_cuda


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


class Pending:
    """Work that runs beside the current stream, with its result on the way."""

    def __init__(self, work: Callable[[], torch.Tensor], stream: Any) -> None:
        self._stream = stream
        self._work: Callable[[], torch.Tensor] | None = work  # holds what the work reads: see `SideStream`
        self._found = work()

    def result(self) -> torch.Tensor:
        """What the work returned; what is launched from now on may read it. A capture must not end without this call."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        self._work = None
        return self._found


class SideStream:
    """A second stream of the device, where small work runs beside what is launched meanwhile. On a CPU it runs at once.

    Torch's allocator gives memory that one stream's tensor left to later tensors of the same stream, without a look at what
    other streams do. Two rules make that safe here, eagerly and in a graph's pool, without `record_stream` (for which a
    capture keeps memory until its end):

    - What the work reads is another stream's. The `Pending` holds the work, and thereby what it reads, until the join. What
      takes that memory afterwards is launched behind the join.
    - What the work returns is the side stream's, and is read by the stream that joined. Once let go, its memory goes to
      later work of the side stream alone. That work begins with a wait for everything that was launched before, the readers
      among it.
    """

    def __init__(self) -> None:
        self._stream = _side_stream(current_device()) if has_cuda() else None

    def beside(self, work: Callable[[], torch.Tensor]) -> Pending:
        """Begin `work` behind what the current stream has been given so far. It may read tensors of the current stream,
        and write none that others see but the one that it returns."""
        if self._stream is None:
            return Pending(work, None)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return Pending(work, self._stream)


@cache
def _side_stream(device: torch.device) -> Any:
    """One for the whole process: torch keeps a workspace of cuBLAS for each stream that has ever multiplied, for good."""
    return torch.cuda.Stream(device)
