"""What the processes of a run use, read from this machine's /proc: for runs that no control group bounds.

Counted are pages that belong to the run (anonymous and shared ones, swapped ones, page tables), the files in its work
directory, and a socket's buffer for every socket that it holds. Pages shared between its processes count once for each.
"""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PAGES = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")
_SOCKET_BYTES = 212_992  # what may wait in a socket, where the kernel's own default cannot be read
_GONE = (OSError, ValueError, IndexError)


@dataclass(frozen=True, slots=True)
class Times:
    """Sums over a run's processes that are alive.

    Attributes:
        cpu_seconds: CPU time, with that of children that were waited for.
        waited_seconds: time that threads were ready to run and did not get a processor.
        running: threads that run or are ready to.
    """

    cpu_seconds: float
    waited_seconds: float
    running: list[int]


def process_of(pidfd: int) -> int:
    """The number of a descriptor's process here, whatever it is in its own name space; 0 once it has ended."""
    with contextlib.suppress(*_GONE):
        for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return max(0, int(line.split()[1]))
    return 0


def descendants(root: int) -> list[int]:
    """A process and all that came from it. What its parent left behind belongs to the first of its name space, which is
    among them."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(*_GONE):
                    todo += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def times(pids: list[int]) -> Times:
    """For these processes; those that have ended count nothing."""
    cpu, waited, running = 0.0, 0.0, []
    for pid in pids:
        with contextlib.suppress(*_GONE):
            cpu += sum(map(int, _stat(f"/proc/{pid}")[11:15])) / _TICK
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(*_GONE):
                    folder = f"/proc/{pid}/task/{task}"
                    if _stat(folder)[0] == "R":
                        running.append(int(task))
                    waited += int(Path(folder, "schedstat").read_text().split()[1]) / 1e9
    return Times(cpu, waited, running)


def memory_bytes(pids: list[int], sockets: bool = True) -> int:
    """Bytes that these processes hold, as the module says, without their work directory; without `sockets` what they have
    mapped alone."""
    total = 0
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(*_GONE):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in _PAGES:
                    total += int(value.split()[0]) << 10
        if sockets:
            found |= _sockets(pid)
    return total + _socket_bytes() * len(found)


@functools.cache
def _socket_bytes() -> int:
    """Bytes that may wait in one socket: a run cannot change that."""
    with contextlib.suppress(*_GONE):
        return int(Path("/proc/sys/net/core/wmem_default").read_text())
    return _SOCKET_BYTES


def work_directory(pids: list[int]) -> tuple[int, int]:
    """Bytes and entries of the /tmp that these processes share; zeros where it cannot be seen, or is not there yet."""
    for pid in pids:
        with contextlib.suppress(OSError):
            inside = os.path.join("/proc", str(pid), "root", "tmp")
            if os.stat(inside).st_dev != os.stat("/tmp").st_dev:
                state = os.statvfs(inside)
                return (state.f_blocks - state.f_bfree) * state.f_frsize, max(0, state.f_files - state.f_ffree)
    return 0, 0


def _stat(folder: str) -> list[str]:
    """The fields of a stat file after the program's name, which may hold anything."""
    return Path(folder, "stat").read_text(errors="replace").rsplit(")", 1)[1].split()


def _sockets(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                target = os.readlink(entry.path)
                if target.startswith("socket:"):
                    found.add(target)
    return found
