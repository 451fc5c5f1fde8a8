"""A control group for each run, where this process may make some: one limit for all of a run's memory, processes and CPU.

Version 2 is used where a group between ours and the root hands memory and pids on to its children (a delegated group, as
`systemd-run --user -p Delegate=yes` makes one); version 1 where its memory hierarchy is ours to write. `open_delegation`
decides by making a group and entering it. Where neither works runs are watched instead, see `usage`.

A worker keeps one group per hierarchy, `megatron-ring-…`, locked with flock as long as it lives, and a child of it per
run. A group that nobody locks belonged to a worker that was killed: the next worker removes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from megatron_ring.rewards.sandbox.boxes import lock_folder
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.run_group import RunGroup, pids_in

NO_GROUPS_VARIABLE = "MEGATRON_RING_NO_CONTROL_GROUPS"  # set to 1, runs are watched even where groups could be made

_PREFIX = "megatron-ring-"
_WANTED = ("memory", "pids", "cpu")
_HARMLESS = (OSError, ValueError)


class Delegation:
    """Where this process may make control groups: one folder of its own per hierarchy, locked while it lives."""

    def __init__(self, version: int, bases: Mapping[str, Path]) -> None:
        self._version = version
        self._numbers = itertools.count()
        self._lingering: list[RunGroup] = []
        self._free: dict[object, list[RunGroup]] = {}  # by `RunGroup.key`
        self._closed = False
        name = _PREFIX + uuid.uuid4().hex[:12]
        self._folders = {controller: base / name for controller, base in bases.items()}
        self._locks: list[int] = []
        try:
            for base in dict.fromkeys(bases.values()):
                sweep(base)
                (base / name).mkdir()
                self._locks.append(lock_folder(base / name))
            if version == 2:
                (self._folders["memory"] / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in bases))
            self._weigh()
        except OSError:
            self.close()
            raise

    def _weigh(self) -> None:
        """Have all runs together weigh as much as two threads of the trainer's on every processor, not as one thread."""
        threads = 2 * (os.cpu_count() or 1)
        name, value = ("cpu.weight", min(10_000, 100 * threads)) if self._version == 2 else ("cpu.shares", 1024 * threads)
        if "cpu" in self._folders:
            with contextlib.suppress(OSError):
                (self._folders["cpu"] / name).write_text(str(value))

    def group(self, limits: Limits, alone: bool = False) -> RunGroup:
        """A new group under these limits; `alone`: it gets nearly all of the processors if it wants them.

        Raises:
            OSError: the kernel refuses another one.
        """
        self.tidy()
        with contextlib.suppress(KeyError, IndexError):
            return self._free[limits.total_bytes, limits.processes, limits.cpus, alone].pop()
        number = next(self._numbers)
        folders = {controller: f"{folder}/run-{number}" for controller, folder in self._folders.items()}
        return RunGroup(self._version, folders, limits, alone)

    def give_back(self, group: RunGroup) -> None:
        """Kill what is left in a group and remove it, now or, where something dies slowly, later. Does not wait."""
        if not self._closed and group.reusable():  # as most are: their run is dead by now
            self._free.setdefault(group.key, []).append(group)
            return
        if group.close():
            return
        group.kill()
        if not group.close():
            self._lingering.append(group)

    def tidy(self, seconds: float = 0.0) -> bool:
        """Remove groups that were given back, waiting up to `seconds` for what dies; True when none is left."""
        deadline = time.monotonic() + seconds
        while self._lingering:
            for group in list(self._lingering):
                if group.close():
                    with contextlib.suppress(ValueError):  # another thread was faster
                        self._lingering.remove(group)
            if time.monotonic() >= deadline:
                break
            time.sleep(0.01)
        return not self._lingering

    def close(self) -> None:
        """Remove all, as far as that is empty within a few seconds."""
        self._closed = True
        for free in self._free.values():
            self._lingering += free
        self._free = {}
        self.tidy(5.0)
        for folder in dict.fromkeys(self._folders.values()):
            with contextlib.suppress(OSError):
                folder.rmdir()
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks = []


def sweep(base: Path) -> bool:
    """Remove the groups of workers that were killed, and kill what is in them; False where something is still dying."""
    clean = True
    for folder in base.glob(_PREFIX + "*"):
        try:
            descriptor = lock_folder(folder)
        except OSError:  # somebody's, or not ours to touch
            continue
        for child in [Path(name) for name, _, _ in os.walk(folder, topdown=False)]:  # the deepest first
            try:
                for pid in pids_in(child):
                    os.kill(pid, signal.SIGKILL)
                child.rmdir()
            except FileNotFoundError:  # somebody else removed it
                continue
            except OSError:
                clean = False
        os.close(descriptor)
    return clean


def open_delegation() -> Delegation | None:
    """Somewhere to make control groups, or None; a real group that a real process enters decides."""
    if os.environ.get(NO_GROUPS_VARIABLE) == "1":
        return None
    for version, bases in _candidates():
        with contextlib.suppress(*_HARMLESS, subprocess.SubprocessError):
            delegation = Delegation(version, bases)
            if _works(delegation):
                return delegation
            delegation.close()
    return None


def _works(delegation: Delegation) -> bool:
    group = delegation.group(Limits())
    script = 'for f in "$@"; do echo 0 >"$f" || exit 1; done; echo entered'
    command = ["/bin/sh", "-c", script, "sh", *group.entries]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
        return done.stdout == b"entered\n" and group.memory_peak() > 0
    finally:
        delegation.give_back(group)


def _candidates() -> Iterator[tuple[int, dict[str, Path]]]:
    """Version and folder per controller, the likeliest first."""
    places = own_groups()
    if "" in places:
        top, own = places[""]
        for folder in (own, *own.parents):
            control = folder / "cgroup.subtree_control"
            wanted = {"memory", "pids", "cpu"} & _words(folder / "cgroup.controllers")
            if wanted - _words(control):
                with contextlib.suppress(OSError):  # refused where processes are in the group itself
                    control.write_text(" ".join(f"+{name}" for name in wanted))
            if {"memory", "pids"} <= _words(control):
                yield 2, {name: folder for name in wanted & _words(control)}
            if folder == top:
                break
    legacy = {name: places[name][1] for name in _WANTED if name in places and os.access(places[name][1], os.W_OK)}
    if "memory" in legacy:
        yield 1, legacy


def sweep_all() -> bool:
    """`sweep` wherever a worker of ours might have had its groups."""
    bases = {base for _, bases in _candidates() for base in bases.values()}
    return all([sweep(base) for base in bases])


def _words(file: Path) -> set[str]:
    with contextlib.suppress(OSError):
        return set(file.read_text().split())
    return set()


def own_groups() -> dict[str, tuple[Path, Path]]:
    """By controller, "" for version 2: where its hierarchy is mounted, and this process's group in it."""
    mounts: dict[str, tuple[str, Path]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), right.split(maxsplit=2)
        if kind in ("cgroup", "cgroup2"):
            for name in [""] if kind == "cgroup2" else options.split(","):
                mounts[name] = (fields[3], Path(fields[4]))
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in mounts:
                root, mount = mounts[name]
                inside = os.path.relpath(path, root)
                own = mount if inside.startswith("..") else mount / inside
                if own.is_dir():
                    found[name] = (mount, own)
    return found
