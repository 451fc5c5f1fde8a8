"""Feed one run, read what it writes up to a cap, and end it at its limits."""

from __future__ import annotations

import math
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import Protocol

from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.images import Limits
from megatron_ring.rewards.sandbox.side_by_side import Stopped, stop_descriptor
from megatron_ring.rewards.sandbox.watch import LATE, Watch

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
        starved: it met its time limit while it waited for a processor: no verdict on the program.
    """

    status: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    seconds: float
    reason: str
    starved: bool = False

    @property
    def ok(self) -> bool:
        """Ended by itself with status 0."""
        return not self.reason


class Handle(Protocol):
    """A run that has been started."""

    @property
    def watch(self) -> Watch:
        """What looks at it from outside."""
        ...

    def fileno(self) -> int:
        """Becomes readable when there is something to hear of the run."""
        ...

    def ended(self) -> bool:
        """Whether that is its end."""
        ...

    def outcome(self) -> tuple[int | None, int | None, bool]:
        """Exit status, signal, timed out; called once it has ended. Raises `MachineFailure` for a run that never began."""
        ...

    def kill(self) -> None:
        """End the run and all it started, now. Safe after its end."""
        ...


class Pipes:
    """Our ends and the run's ends of its stdin, stdout and stderr; -1 for an end that we do not have.

    Args:
        stdin: a file that the run reads in place of a pipe; closed with its other ends.
    """

    def __init__(self, stdin: int | None = None) -> None:
        in_read, self.stdin = os.pipe() if stdin is None else (stdin, -1)
        self.stdout, out_write = os.pipe()
        self.stderr, err_write = os.pipe()
        self.theirs = [in_read, out_write, err_write]
        for descriptor in (self.stdin, self.stdout, self.stderr):
            if descriptor >= 0:
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

    Raises:
        MachineFailure: it never began, or somebody else ended it.
        Stopped: its result is of no use any more, see `side_by_side`.
    """
    status: int | None = None
    number: int | None = signal.SIGKILL
    timed_out = starved = False
    try:
        output, reason = _pump(handle, pipes, stdin, limits, started + handle.watch.seconds + grace)
        if not reason:
            status, number, timed_out = _outcome(handle, output[1])
            reason = _reason(handle.watch, limits, status, number, timed_out)
        timed_out = timed_out or reason == LATE
        if timed_out and (memory := handle.watch.met_memory_limit()):  # what was left of it went on
            timed_out, reason = False, memory
        if timed_out:
            reason = f"time limit of {limits.seconds:g} s exceeded"
            starved = handle.watch.starved()
    finally:
        handle.kill()
        pipes.close()
    return RunResult(status, number, output[0], output[1], timed_out, time.monotonic() - started, reason, starved)


def _outcome(handle: Handle, stderr: bytes) -> tuple[int | None, int | None, bool]:
    try:
        return handle.outcome()
    except MachineFailure as error:
        lines = stderr[-1000:].decode("utf-8", "replace").strip().splitlines()
        raise MachineFailure(f"{error}: {lines[-1]}" if lines else str(error)) from None


def _reason(watch: Watch, limits: Limits, status: int | None, number: int | None, timed_out: bool) -> str:
    """Why a run that ended by itself failed, or an empty text."""
    if timed_out:
        return LATE
    if memory := watch.met_memory_limit():
        return memory
    if number == signal.SIGKILL:
        if watch.cpu_seconds() >= limits.cpu_seconds - 1:
            return f"CPU time limit of {limits.cpu_seconds} s exceeded"
        if watch.killed_by_the_machine():
            peak = watch.memory_peak()
            if 2 * peak < limits.total_bytes:
                raise MachineFailure("a run was killed: the machine is short of memory")
            return f"killed with {peak >> 20} MiB where the machine is short of memory"
    if number is not None:
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"killed by {name}"
    return f"exit status {status}" if status != 0 else ""


def _pump(handle: Handle, pipes: Pipes, stdin: bytes, limits: Limits, deadline: float) -> tuple[tuple[bytes, bytes], str]:
    """Move bytes until the run ends; returns (stdout, stderr), and why it must be ended, empty where it did itself."""
    buffers = {pipes.stdout: bytearray(), pipes.stderr: bytearray()}
    todo, reason, ended = memoryview(stdin), "", False
    flooded = f"more than {limits.output_bytes} bytes of output"
    stop = stop_descriptor()
    watched, stdin_fd = handle.fileno(), pipes.stdin
    poll = select.poll()
    for descriptor in (watched, *buffers, *(() if stop is None else (stop,))):
        poll.register(descriptor, select.POLLIN)
    if stdin_fd >= 0:
        todo = _feed(stdin_fd, todo)
        if todo:
            poll.register(stdin_fd, select.POLLOUT)
        else:
            _close_stdin(pipes)
    while not (reason or ended):
        seconds = min(deadline, handle.watch.next_look) - time.monotonic()
        for ready, _ in poll.poll(math.ceil(1000 * max(0.0, seconds))):
            if ready == watched:
                ended = handle.ended()
            elif ready == stop:
                raise Stopped
            elif ready == stdin_fd:
                todo = _feed(ready, todo)
                if not todo:
                    poll.unregister(ready)
                    _close_stdin(pipes)
            elif not _read_some(ready, buffers[ready]):
                poll.unregister(ready)
            elif len(buffers[ready]) > limits.output_bytes:
                reason = flooded
            else:
                handle.watch.said_something()
        now = time.monotonic()
        if not (ended or reason):
            reason = LATE if now >= deadline else handle.watch.look() if now >= handle.watch.next_look else ""
    for descriptor, buffer in buffers.items():  # what was in the pipes at the end
        while ended and len(buffer) <= limits.output_bytes and _read_some(descriptor, buffer):
            pass
        reason = flooded if len(buffer) > limits.output_bytes else reason
    out, err = (bytes(buffer[: limits.output_bytes]) for buffer in buffers.values())
    return (out, err), reason


def _feed(descriptor: int, todo: memoryview) -> memoryview:
    try:
        return todo[os.write(descriptor, todo[:_CHUNK]) :] if todo else todo
    except BlockingIOError:
        return todo
    except OSError:  # the run closed its stdin
        return todo[:0]


def _close_stdin(pipes: Pipes) -> None:
    os.close(pipes.stdin)
    pipes.stdin = -1


def _read_some(descriptor: int, buffer: bytearray) -> bool:
    try:
        part = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    buffer += part
    return bool(part)
