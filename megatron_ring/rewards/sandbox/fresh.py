"""One command in a sandbox of its own; and without one, for trusted programs where there is none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from megatron_ring.rewards.sandbox import boxes, bwrap
from megatron_ring.rewards.sandbox.cgroups import Delegation
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.run import Pipes, RunResult, collect
from megatron_ring.rewards.sandbox.run_group import RunGroup
from megatron_ring.rewards.sandbox.seccomp import build_filter
from megatron_ring.rewards.sandbox.watch import NICE, Watch


class ProcessHandle:
    """A run that is a process of ours; with bubblewrap its whole pid space dies with it.

    Args:
        status_file: where bubblewrap writes what became of the program; None without bubblewrap.
        end: called once the run is over.
        group: its control group, if it has one.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        watch: Watch,
        status_file: int | None,
        end: ExitStack,
        group: RunGroup | None = None,
    ) -> None:
        self._process, self.watch, self._status_file, self._end = process, watch, status_file, end
        self._group = group
        self._watched = os.pidfd_open(process.pid)

    def fileno(self) -> int:
        return self._watched

    def ended(self) -> bool:
        return True

    def outcome(self) -> tuple[int | None, int | None, bool]:
        code = self._process.wait()
        if self._group is not None:
            self._group.over = True
        if self._status_file is not None and not _program_ended(self._status_file):
            raise MachineFailure(f"bubblewrap ended before the program began (exit status {code})")
        number = -code if code < 0 else code - 128 if 128 < code < 128 + 65 else None  # as shells and bwrap report it
        return (code, None, False) if number is None else (None, number, False)

    def kill(self) -> None:
        if self._watched < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            # Unsandboxed runs lead a process group of their own; for bwrap it changes nothing.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._end.close()
        self._process.wait()
        os.close(self._watched)
        self._watched = -1


def _program_ended(status_file: int) -> bool:
    """Whether bubblewrap wrote an exit status: it does for a program that it started, and for no failure of its own."""
    os.lseek(status_file, 0, os.SEEK_SET)
    for line in os.read(status_file, 1 << 16).splitlines():
        with contextlib.suppress(ValueError):
            if "exit-code" in json.loads(line):
                return True
    return False


@dataclass(frozen=True, slots=True)
class Fresh:
    """One command in a sandbox of its own.

    Attributes:
        command: the program and its arguments, as seen inside.
        binds: paths that it may read.
        files: more files inside, path → content.
        box: a directory shown as `/box`; `writable` for compilers.
        sets_limits: the program sets its limits itself.
        own_proc: it sees a /proc, of its own processes only, which it cannot write to.
    """

    command: tuple[str, ...]
    binds: tuple[str, ...]
    limits: Limits
    files: dict[str, bytes] = field(default_factory=dict)
    box: str = ""
    writable: bool = False
    sets_limits: bool = False
    own_proc: bool = False

    def start(
        self, standard: list[int], delegation: Delegation | None = None, alone: bool = False, stdin_is_file: bool = False
    ) -> ProcessHandle:
        """Start it on these descriptors for stdin, stdout and stderr; in a control group where there is a delegation.

        Args:
            stdin_is_file: stdin is a file that can be opened anew, and `/dev/stdin` is to be that file, too.

        Raises:
            OSError: the machine has no process, descriptor or memory for it.
        """
        with ExitStack() as end:
            group = _group(delegation, self.limits, alone, end)
            status_file = os.memfd_create("status")
            end.callback(os.close, status_file)
            with ExitStack() as stack:
                descriptors = [status_file]
                command = self._wrapped(descriptors, stack, standard[0] if stdin_is_file else None)
                nice = 0 if alone or (group is not None and group.bounds_cpu) else NICE
                process = subprocess.Popen(
                    bwrap.entering(command, () if group is None else group.entries, nice),
                    stdin=standard[0],
                    stdout=standard[1],
                    stderr=standard[2],
                    pass_fds=descriptors,
                    env=bwrap.environment(),
                    start_new_session=True,
                )
            watch = Watch(self.limits, group, lambda: process.pid, alone)
            return ProcessHandle(process, watch, status_file, end.pop_all(), group)

    def run(self, stdin: bytes = b"", delegation: Delegation | None = None, alone: bool = False) -> RunResult:
        """Start it and drive it to its end. Raises what `start` and `collect` do."""
        started = time.monotonic()
        pipes = Pipes(bwrap.input_file(stdin))  # programs ask for its size, map it, or read it twice
        try:
            handle = self.start(pipes.theirs, delegation, alone, stdin_is_file=True)
        except BaseException:
            pipes.close()
            raise
        pipes.close_theirs()
        return collect(handle, pipes, b"", self.limits, started)

    def _wrapped(self, descriptors: list[int], stack: ExitStack, stdin: int | None) -> list[str]:
        """The whole bwrap command; the descriptors that it reads and writes are added to the first, its status file."""
        inner = self.command if self.sets_limits else bwrap.limited(self.limits, self.command)
        binds = (*self.binds, "/usr/bin/prlimit")
        proc: bwrap.Proc = "read" if self.own_proc else "none"
        if stdin is not None:
            stdin = bwrap.opened_anew(stdin)
            stack.callback(os.close, stdin)
            descriptors.append(stdin)
        wrapper = bwrap.confinement(binds, self.limits, proc=proc, box=self.box, writable=self.writable, stdin=stdin)
        wrapper += ["--json-status-fd", str(descriptors[0])]
        for path, content in self.files.items():
            descriptors.append(stack.enter_context(bwrap.memory_file(content)))
            wrapper += ["--ro-bind-data", str(descriptors[-1]), path]
        descriptors.append(stack.enter_context(bwrap.memory_file(build_filter())))
        return [*wrapper, "--remount-ro", "/", "--seccomp", str(descriptors[-1]), "--", *inner]


def _group(delegation: Delegation | None, limits: Limits, alone: bool, end: ExitStack) -> RunGroup | None:
    """A control group for a run, given back by `end`; None where there are none."""
    if delegation is None:
        return None
    group = delegation.group(limits, alone)
    end.callback(delegation.give_back, group)
    return group


@dataclass(frozen=True, slots=True)
class Unsafe(Fresh):
    """The same without a sandbox, for trusted programs where there is none: limits on time, memory and output only."""

    def start(
        self, standard: list[int], delegation: Delegation | None = None, alone: bool = False, stdin_is_file: bool = False
    ) -> ProcessHandle:
        """Start it with `/guest` and `/box` replaced by directories of the host."""
        with ExitStack() as end:
            home = end.enter_context(boxes.box())
            for path, content in self.files.items():
                target = home.joinpath(path.lstrip("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            inner = [argument.replace("/box", self.box) if self.box else argument for argument in self.command]
            inner = [f"{home}{argument}" if argument in self.files else argument for argument in inner]
            process = subprocess.Popen(
                inner,
                stdin=standard[0],
                stdout=standard[1],
                stderr=standard[2],
                cwd=home,
                env=bwrap.environment(),
                start_new_session=True,
            )
            return ProcessHandle(process, Watch(self.limits, None, lambda: process.pid, alone), None, end.pop_all())
