"""Feed one run, read what it writes up to a cap, and end it at its limits. Also: one fresh sandbox per run."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.seccomp import build_filter

_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        status: exit status; None when a signal ended it.
        signal: the signal that did.
        stdout, stderr: what it wrote, cut at the limit.
        seconds: wall clock.
        reason: in words; empty for exit status 0 within all limits.
    """

    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float
    reason: str

    @property
    def ok(self) -> bool:
        """Ended by itself with status 0."""
        return not self.reason


class Handle(Protocol):
    """A run that has been started."""

    def fileno(self) -> int:
        """Becomes readable when the run has ended."""
        ...

    def outcome(self) -> tuple[int | None, int | None, bool]:
        """Exit status, signal, timed out; called once it has ended."""
        ...

    def kill(self) -> None:
        """End the run and all it started, now. Safe after its end."""
        ...


class ProcessHandle:
    """A run that is a bwrap process; with the outer process its whole pid space dies."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._watched = os.pidfd_open(process.pid)

    def fileno(self) -> int:
        return self._watched

    def outcome(self) -> tuple[int | None, int | None, bool]:
        code = self._process.wait()
        number = -code if code < 0 else code - 128 if 128 < code < 128 + 65 else None  # as shells and bwrap report it
        return (code, None, False) if number is None else (None, number, False)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            # Unsandboxed runs lead a process group of their own; for bwrap it changes nothing.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        if self._watched >= 0:
            os.close(self._watched)
            self._watched = -1


class Pipes:
    """Our ends and the run's ends of its stdin, stdout and stderr."""

    def __init__(self) -> None:
        in_read, self.stdin = os.pipe()
        self.stdout, out_write = os.pipe()
        self.stderr, err_write = os.pipe()
        self.theirs = [in_read, out_write, err_write]
        for descriptor in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(descriptor, False)

    def close_theirs(self) -> None:
        for descriptor in self.theirs:
            os.close(descriptor)
        self.theirs = []

    def close(self) -> None:
        self.close_theirs()
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self.stdin = self.stdout = self.stderr = -1


def collect(handle: Handle, pipes: Pipes, stdin: bytes, limits: Limits, started: float, grace: float = 0.0) -> RunResult:
    """Drive one run to its end: never longer than its time limit, never holding more output than its cap.

    `grace` is added to the limit where the run is also ended from inside, which knows better when it began.
    The pipes are closed on return and nothing of the run is left.
    """
    try:
        output, flooded, late = _pump(handle, pipes, stdin, limits, started + limits.seconds + grace)
        status, number, timed_out = (None, signal.SIGKILL, late) if flooded or late else handle.outcome()
    finally:
        handle.kill()
        pipes.close()
    seconds = time.monotonic() - started
    reason = ""
    if late or timed_out:
        reason = f"time limit of {limits.seconds:g} s exceeded"
    elif flooded:
        reason = f"more than {limits.output_bytes} bytes of output"
    elif number is not None:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        reason = f"killed by {name}"
    elif status != 0:
        reason = f"exit status {status}"
    return RunResult(status, number, output[0], output[1], late or timed_out, seconds, reason)


def _pump(
    handle: Handle, pipes: Pipes, stdin: bytes, limits: Limits, deadline: float
) -> tuple[tuple[bytes, bytes], bool, bool]:
    """Move bytes until the run ends; returns (stdout, stderr), too much output, too late."""
    buffers = {pipes.stdout: bytearray(), pipes.stderr: bytearray()}
    todo, flooded, late, ended = memoryview(stdin), False, False, False
    with selectors.DefaultSelector() as selector:
        selector.register(handle.fileno(), selectors.EVENT_READ)
        for descriptor in buffers:
            selector.register(descriptor, selectors.EVENT_READ)
        selector.register(pipes.stdin, selectors.EVENT_WRITE)
        stdin_fd = pipes.stdin
        while not (flooded or late or ended):
            events = selector.select(max(0.0, deadline - time.monotonic()))
            late = not events
            for key, _ in events:
                if key.fd == handle.fileno():
                    ended = True
                elif key.fd == stdin_fd:
                    todo = _feed(key.fd, todo)
                    if not todo:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                        pipes.stdin = -1
                elif not _read_some(key.fd, buffers[key.fd]):
                    selector.unregister(key.fd)
                elif len(buffers[key.fd]) > limits.output_bytes:
                    flooded = True
            late = late or (not ended and time.monotonic() > deadline)
    for descriptor, buffer in buffers.items():  # what was in the pipes at the end
        while ended and len(buffer) <= limits.output_bytes and _read_some(descriptor, buffer):
            pass
        flooded = flooded or len(buffer) > limits.output_bytes
    out, err = (bytes(buffer[: limits.output_bytes]) for buffer in buffers.values())
    return (out, err), flooded, late


def _feed(descriptor: int, todo: memoryview) -> memoryview:
    try:
        return todo[os.write(descriptor, todo[:_CHUNK]) :] if todo else todo
    except BlockingIOError:
        return todo
    except OSError:  # the run closed its stdin
        return todo[:0]


def _read_some(descriptor: int, buffer: bytearray) -> bool:
    try:
        part = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    buffer += part
    return bool(part)


@dataclass(frozen=True, slots=True)
class Fresh:
    """One command in a sandbox of its own.

    Attributes:
        command: the program and its arguments, as seen inside.
        binds: paths that it may read.
        files: more files inside, path → content.
        box: a directory shown as `/box`; `writable` for compilers.
        sets_limits: the program sets its limits itself.
        own_proc: it sees a /proc, of its own processes only.
    """

    command: tuple[str, ...]
    binds: tuple[str, ...]
    limits: Limits
    files: dict[str, bytes] = field(default_factory=dict)
    box: str = ""
    writable: bool = False
    sets_limits: bool = False
    own_proc: bool = False

    def start(self, standard: list[int]) -> ProcessHandle:
        """Start it on these descriptors for stdin, stdout and stderr."""
        inner = self.command if self.sets_limits else bwrap.limited(self.limits, self.command)
        binds = (*self.binds, "/usr/bin/prlimit")
        wrapper = bwrap.confinement(binds, self.limits, own_proc=self.own_proc, box=self.box, writable=self.writable)
        with ExitStack() as stack:
            descriptors = []
            for path, content in self.files.items():
                descriptors.append(stack.enter_context(bwrap.memory_file(content)))
                wrapper += ["--ro-bind-data", str(descriptors[-1]), path]
            descriptors.append(stack.enter_context(bwrap.memory_file(build_filter())))
            process = subprocess.Popen(
                [*wrapper, "--remount-ro", "/", "--seccomp", str(descriptors[-1]), "--", *inner],
                stdin=standard[0],
                stdout=standard[1],
                stderr=standard[2],
                pass_fds=descriptors,
                env=bwrap.environment(),
                start_new_session=True,
                **bwrap.account(),
            )
            return ProcessHandle(process)

    def run(self, stdin: bytes = b"") -> RunResult:
        """Start it and drive it to its end."""
        started = time.monotonic()
        pipes = Pipes()
        try:
            handle = self.start(pipes.theirs)
        except BaseException:
            pipes.close()
            raise
        pipes.close_theirs()
        return collect(handle, pipes, stdin, self.limits, started)


@dataclass(frozen=True, slots=True)
class Unsafe(Fresh):
    """The same without a sandbox, for trusted programs where there is none: limits on time, memory and output only."""

    def start(self, standard: list[int]) -> ProcessHandle:
        """Start it with `/guest` and `/box` replaced by directories of the host, which are left to the system to clear."""
        home = tempfile.mkdtemp(prefix="unsafe-code-") if self.files else tempfile.gettempdir()
        for path, content in self.files.items():
            target = Path(home + path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        inner = [argument.replace("/box", self.box) if self.box else argument for argument in self.command]
        inner = [home + argument if argument in self.files else argument for argument in inner]
        process = subprocess.Popen(
            inner,
            stdin=standard[0],
            stdout=standard[1],
            stderr=standard[2],
            cwd=home,
            env=bwrap.environment(),
            start_new_session=True,
        )
        return ProcessHandle(process)
