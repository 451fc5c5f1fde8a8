"""Where the time and the memory of a step go, by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import peak_memory, reset_peak_memory, synchronize

GIB = 2.0**30


class Phases:
    """Takes the time of a step apart. From one `finish` to the next is one step, whatever runs between: the seconds of its
    phases and `time/other` add up to `time/step`."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._processor_began = time.process_time()
        self._processor: dict[str, float] = {}
        self._bytes: dict[str, int] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What runs within belongs to this phase. On CUDA its peak of memory is taken; phases do not nest."""
        reset_peak_memory()
        began, processor_began = time.perf_counter(), time.process_time()
        yield
        synchronize()
        self.add(name, time.perf_counter() - began)
        self._processor[name] = self._processor.get(name, 0.0) + time.process_time() - processor_began
        for kind, peak in peak_memory().items():
            key = f"memory/{kind}_gib" + ("" if kind == "rss" else f"/{name}")  # a process's peak cannot be reset
            self._bytes[key] = max(peak, self._bytes.get(key, 0))

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def hold(self, name: str, size: int) -> None:
        """Note `size` bytes as `memory/NAME_gib` of the step, its largest if noted more than once."""
        key = f"memory/{name}_gib"
        self._bytes[key] = max(size, self._bytes.get(key, 0))

    def finish(self) -> dict[str, float]:
        """End the step: its `time/…` and `processor/…` (of all threads of this process) in seconds on this rank, and
        `memory/…` in GiB, the largest of all ranks. All ranks take part."""
        now = time.perf_counter()
        total, self._began = now - self._began, now
        figures = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        figures = {"time/step": total, **figures, "time/other": total - sum(self._seconds.values())}
        processor, began = time.process_time(), self._processor_began
        figures |= {f"processor/{name}": seconds for name, seconds in {**self._processor, "step": processor - began}.items()}
        self._processor, self._processor_began = {}, processor
        of_ranks = collectives.gather_over_world(self._bytes)
        figures |= {key: max(part.get(key, 0) for part in of_ranks) / GIB for key in self._bytes}
        self._seconds, self._bytes = {}, {}
        return figures
