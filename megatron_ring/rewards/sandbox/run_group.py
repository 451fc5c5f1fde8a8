"""The control group of one run: one limit for all of its memory, processes and CPU."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from megatron_ring.rewards.sandbox.images import Limits

_PERIOD = 100_000  # µs; the kernel's default period of CPU bandwidth
_WEIGHT, _WEIGHT_ALONE = 1024, 10_240  # version 1 shares; version 2 weights are these over 10.24
_AT_LIMIT = 0.99
_REUSES = 64  # runs in a row of one group; what the kernel keeps charged for dead runs is not to add up
_MOST_BYTES = 1 << 16  # of a file of the kernel's
_HARMLESS = (OSError, ValueError)


class RunGroup:
    """The control group of one run: enter it, read it, end it.

    Attributes:
        key: groups with the same one are alike.
        over: the run is known to have ended. One that was given up before may still be on its way into the group.
    """

    def __init__(self, version: int, folders: Mapping[str, str], limits: Limits, alone: bool) -> None:
        self._version, self._folders, self._limits = version, folders, limits
        self._distinct = list(dict.fromkeys(folders.values()))
        self.key = (limits.total_bytes, limits.processes, limits.cpus, alone)
        self._runs_left, self._cpu_before, self.over = _REUSES, 0.0, False
        for folder in self._distinct:
            os.mkdir(folder)
        try:
            self._set_limits(alone)
        except OSError:
            self.close()
            raise

    @property
    def entries(self) -> list[str]:
        """The files into which a process writes `0` to enter."""
        return [f"{folder}/cgroup.procs" for folder in self._distinct]

    @property
    def bounds_cpu(self) -> bool:
        return "cpu" in self._folders

    def pids(self) -> list[int]:
        """The processes in it, by the numbers that we see."""
        with contextlib.suppress(OSError):
            return pids_in(Path(self._folders["memory"]))
        return []

    def memory_peak(self) -> int:
        """Most bytes that it ever held; 0 where the kernel does not say."""
        with contextlib.suppress(*_HARMLESS):
            return int(self._read("memory", "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"))
        return 0

    def killed(self) -> bool:
        """Whether the kernel killed something in it for want of memory, its own or the machine's."""
        with contextlib.suppress(*_HARMLESS):
            return self._count("memory.events" if self._version == 2 else "memory.oom_control", "oom_kill") > 0
        return False

    def met_its_limit(self) -> bool:
        """Whether it was refused memory at its own limit."""
        with contextlib.suppress(*_HARMLESS):
            if self._version == 2:
                return self._count("memory.events", "max") > 0
            return self.memory_peak() >= _AT_LIMIT * self._limits.total_bytes  # `failcnt` does not count everywhere
        return False

    def cpu_seconds(self) -> float | None:
        """CPU time of all that ever ran in it; None where the kernel does not say."""
        with contextlib.suppress(*_HARMLESS, KeyError):
            if self._version == 2:
                return self._count("cpu.stat", "usage_usec") / 1e6 - self._cpu_before
        return None

    def kill(self) -> None:
        """Kill all that is in it. What dies needs the processor for that: its bound is lifted."""
        with contextlib.suppress(OSError, KeyError):
            if self._version == 2:
                self._write("cpu", "cpu.max", "max")
            else:
                self._write("cpu", "cpu.cfs_quota_us", "-1")
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def reusable(self) -> bool:
        """Whether it is as good as new: its run is over, nothing is left in it, and none of its runs came near its limits.
        Making one costs a tenth of a run."""
        over, self.over = self.over, False
        self._runs_left -= 1
        self._cpu_before += self.cpu_seconds() or 0.0
        calm = 4 * self.memory_peak() < self._limits.total_bytes and not self.killed()
        return over and self._runs_left > 0 and calm and not self._read_procs()

    def _read_procs(self) -> str:
        try:
            return self._read("memory", "cgroup.procs")
        except OSError:
            return "gone"

    def close(self) -> bool:
        """Remove it; False while something in it is still alive or dying."""
        for folder in self._distinct:
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def _set_limits(self, alone: bool) -> None:
        limits, weight = self._limits, _WEIGHT_ALONE if alone else _WEIGHT
        quota = int(limits.cpus * _PERIOD)
        memory = str(limits.total_bytes)
        if self._version == 2:
            self._write("memory", "memory.max", memory)
            others = [
                ("memory", "memory.swap.max", "0"),
                ("memory", "memory.oom.group", "1"),
                ("cpu", "cpu.max", f"{quota} {_PERIOD}"),
                ("cpu", "cpu.weight", str(round(weight / 10.24))),
            ]
        else:
            self._write("memory", "memory.limit_in_bytes", memory)
            others = [
                ("memory", "memory.memsw.limit_in_bytes", memory),
                ("cpu", "cpu.cfs_quota_us", str(quota)),
                ("cpu", "cpu.shares", str(weight)),
            ]
        # Two more for bubblewrap, outside of the run's name space.
        for controller, name, value in (*others, ("pids", "pids.max", str(limits.processes + 2))):
            with contextlib.suppress(OSError, KeyError):
                self._write(controller, name, value)

    def _count(self, name: str, event: str) -> int:
        fields = dict(line.split() for line in self._read("memory", name).splitlines())
        return int(fields.get(event, "0"))

    def _read(self, controller: str, name: str) -> str:
        descriptor = os.open(f"{self._folders[controller]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:  # `open` would take four times as long, some times per run
            return os.read(descriptor, _MOST_BYTES).decode()
        finally:
            os.close(descriptor)

    def _write(self, controller: str, name: str, value: str) -> None:
        descriptor = os.open(f"{self._folders[controller]}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)


def pids_in(folder: Path) -> list[int]:
    """Its processes; those outside of our name space, which read as 0, are not ours to signal."""
    return [pid for line in (folder / "cgroup.procs").read_text().split() if (pid := int(line)) > 0]
