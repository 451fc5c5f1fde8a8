"""Looks at a run from outside while it goes on: ends it past a limit, and remembers how it fared for the processors."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from megatron_ring.rewards.sandbox import usage
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.run_group import RunGroup

LATE = "late"  # the reason to end a run that has had its time
PATIENCE = 3  # times the time limit that a run may take on the clock where it waits for a processor
NICE = 5  # of a run that no control group bounds: the trainer comes first
_FIRST_LOOK = 0.03  # most runs are over by then
_MOST_LOOKS = 20  # over a run's time, where a group bounds it
_SLOWEST, _FASTEST = 0.02, 0.005  # seconds between looks, where none does; faster past half of the limit
_STARVED_CPU, _STARVED_WAIT = 0.5, 0.2  # shares of the time limit
_NICE_STEP = 1.25  # the scheduler's weight from one nice value to the next
_MIB = 1 << 20


class Watch:
    """Of one run.

    Args:
        group: the control group around it, if there is one.
        root: the number of its first process here; 0 while that is not known.
        alone: it is a second try, which is to have the processors that it wants.

    Attributes:
        seconds: how long the run may take on the clock.
        next_look: when `look` is due, on `time.monotonic`.
    """

    def __init__(self, limits: Limits, group: RunGroup | None, root: Callable[[], int], alone: bool = False) -> None:
        self._limits, self._group, self._root, self._alone = limits, group, root, alone
        self._interval = max(0.1, limits.seconds / _MOST_LOOKS) if group else _SLOWEST
        self._started = time.monotonic()
        self.next_look, self._looked = self._started + _FIRST_LOOK, self._started
        self.seconds = (PATIENCE if alone else 1) * limits.seconds  # on the clock
        self._last = (0.0, time.monotonic())  # CPU seconds and when
        self._cpu = self._waited = self._stood = self._used = 0.0
        self._peak = 0
        self._kills_before = 0 if group else _kernel_kills()

    def said_something(self) -> None:
        """Output has come: a run that nothing but looking bounds is looked at before it can end with what it holds."""
        if self._group is None:
            self.next_look = min(self.next_look, self._looked + _FASTEST)

    def look(self) -> str:
        """Look now; why the run must end, or an empty text."""
        pids = self._group.pids() if self._group else self._tree()
        interval = self._interval
        reason = ""
        if pids:
            found = usage.times(pids)
            self._note(found)
            held, files = usage.work_directory(pids)
            if files > self._limits.work_files + 1:  # the directory itself is one
                reason = f"more than {self._limits.work_files} files"
            elif self._group is None:
                self._share_processors(found)
                held += usage.memory_bytes(pids)
                self._peak = max(self._peak, held)
                if held > self._limits.total_bytes:
                    reason = self._too_much()
                elif 2 * held > self._limits.total_bytes:
                    interval = _FASTEST
        self._looked = time.monotonic()
        self.next_look = self._looked + interval
        return reason or self._late()

    def _note(self, found: usage.Times) -> None:
        """Remember CPU time and waiting. The kernel's own count of waiting leaves out what a bound of the group around us
        takes: a run that wants to go on and does not is seen here, too."""
        (before, when), now = self._last, time.monotonic()
        self._last = found.cpu_seconds, now
        self._used = (found.cpu_seconds - before) / max(now - when, 1e-3)
        if found.running:
            self._stood += max(0.0, now - when - max(0.0, found.cpu_seconds - before))
        self._cpu = max(self._cpu, found.cpu_seconds)
        self._waited = max(self._waited, found.waited_seconds, self._stood)

    def _late(self) -> str:
        """A second try has more time on the clock, of which only CPU time counts."""
        return LATE if self._alone and self.cpu_seconds() > self._limits.seconds else ""

    def met_memory_limit(self) -> str:
        """In words, that the kernel ended something of the run at its limit; empty where it did not."""
        group = self._group
        return self._too_much() if group is not None and group.killed() and group.met_its_limit() else ""

    def killed_by_the_machine(self) -> bool:
        """Whether the kernel killed something while the run went on, for want of memory: of the run, where a group says so,
        of anything here otherwise."""
        return self._group.killed() if self._group is not None else _kernel_kills() > self._kills_before

    def cpu_seconds(self) -> float:
        """CPU time of the run, as far as it was seen."""
        exact = self._group.cpu_seconds() if self._group else None
        return self._cpu if exact is None else exact

    def memory_peak(self) -> int:
        """Most bytes that the run was seen to hold."""
        return self._group.memory_peak() if self._group else self._peak

    def starved(self) -> bool:
        """Whether its time went by while it waited for a processor. A program that sleeps does not wait for one."""
        return is_starved(self.cpu_seconds(), self._waited, self._limits.seconds)

    def _tree(self) -> list[int]:
        root = self._root()
        return usage.descendants(root) if root > 0 else []

    def _too_much(self) -> str:
        return f"memory limit of {self._limits.total_bytes // _MIB} MiB exceeded"

    def _share_processors(self, found: usage.Times) -> None:
        """Have threads that run side by side weigh as much together as `limits.cpus` of them."""
        crowd = len(found.running) / self._limits.cpus
        if self._used <= self._limits.cpus and crowd <= 1.5:
            return
        nice = min(19, (0 if self._alone else NICE) + round(math.log(max(crowd, 1.0)) / math.log(_NICE_STEP)))
        for thread in found.running:
            with contextlib.suppress(OSError):
                if os.getpriority(os.PRIO_PROCESS, thread) < nice:
                    os.setpriority(os.PRIO_PROCESS, thread, nice)


def is_starved(cpu_seconds: float, waited_seconds: float, seconds: float) -> bool:
    """Whether `seconds` were spent waiting for a processor rather than on it, or asleep."""
    return cpu_seconds < _STARVED_CPU * seconds and waited_seconds > _STARVED_WAIT * seconds


def _kernel_kills() -> int:
    """Processes that this machine's kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
