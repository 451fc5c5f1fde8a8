"""The warm interpreter inside bubblewrap: forks once per run, each fork sealed off before it sees the solution.

Modes (first argument):
    zygote FD     serve requests on the socket FD: one datagram per run that holds its seconds, its niceness and whether
                  its process is to be told, with four or more descriptors: the run's control socket, stdin, stdout,
                  stderr, and those of control groups that it enters by writing `0`. The control socket carries the run's
                  spec (a length, then JSON) one way; the other way a descriptor of its process, where that was asked for,
                  and lines of JSON: `{"failed": …}` from a run that could not be set up, and at last its result. When its
                  other end closes, the run is killed.
    once FILE     run one job from the spec in FILE, where the sandbox around this process belongs to it alone.

Each run is one process, cloned into user, mount and pid name spaces of its own. It is pid 1 there: whatever it left behind
dies with it, and the zygote kills it at its limit. It gets an empty work directory of its own, hides /proc, and gives up
every capability before any code of the solution is read. The other name spaces are bubblewrap's, one for all runs of a
zygote; the calls that reach through them (sockets, System V and POSIX queues, the host name) are refused by the filter.
The zygote itself never runs a solution, so that nothing one run does to its modules can reach the next.
"""

from __future__ import annotations

import _signal
import contextlib
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

AtFork = list[dict[str, Callable[[], object]]]


@contextlib.contextmanager
def _at_fork_aside() -> Iterator[AtFork]:
    """Collect what modules register for forks. The zygote has one thread, so a run's start leaves them nothing to do, and
    it would take them a tenth of the run. Each run registers them again, for the forks of the solution."""
    handlers: AtFork = []
    register = os.register_at_fork
    os.register_at_fork = lambda **given: handlers.append(given)
    try:
        yield handlers
    finally:
        os.register_at_fork = register


with _at_fork_aside() as _IMPORTED:
    import guest_jobs
    import guest_sealing

# What solutions import most: loaded once here, shared by every fork.
PRELOADED = (
    "array", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "fractions", "functools", "heapq", "io",
    "itertools", "math", "operator", "queue", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
REQUEST = struct.Struct("!di?")
MAX_DESCRIPTORS = 8
SPEC_HEADER = struct.Struct("!Q")


def _register(handlers: AtFork) -> None:
    for given in handlers:
        os.register_at_fork(**given)


def _receive(control: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = control.recv(min(size - len(data), 1 << 20))
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


class _Request(NamedTuple):
    """What a run is given: its control socket, its standard descriptors, the entries of its control groups."""

    seconds: float
    nice: int
    wants_process: bool
    control: socket.socket
    standard: list[int]
    groups: list[int]


class _Shared(NamedTuple):
    """What all runs have in common; `at_fork`: what solutions' own forks are to call."""

    filter: guest_sealing.Filter
    uid: int
    gid: int
    at_fork: AtFork


def _run(request: _Request, shared: _Shared) -> None:
    """The run itself: seal this process, then execute the job. Never returns."""
    control = request.control
    try:
        for entry in request.groups:
            os.write(entry, b"0")
        if request.nice:
            os.nice(request.nice)
        _signal.signal(signal.SIGINT, _signal.SIG_DFL)  # what `signal.signal` wraps takes a quarter of its time
        (size,) = SPEC_HEADER.unpack(_receive(control, SPEC_HEADER.size))
        spec = json.loads(_receive(control, size))
        guest_sealing.own_namespaces(shared.uid, shared.gid)
        guest_sealing.write_file("/proc/self/oom_score_adj", "1000")
        guest_sealing.private_files(spec["limits"])
        os.setsid()
        for target, source in enumerate(request.standard):
            os.dup2(source, target)
        guest_sealing.limit(spec["limits"])
        kept = control.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, 1 << 16)
        shared.filter.seal()
    except BaseException as error:
        _tell(control, {"failed": str(error)[:200]})
        os._exit(125)
    control.close()  # nothing of a solution has run so far: what was told over it is true
    sys.modules["random"].seed()
    _register(shared.at_fork)
    guest_jobs.run_job(spec)


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(message).encode() + b"\n")


class _Zygote:
    """Starts runs, waits for them, kills them at their limits or when nobody wants them any more, and reports."""

    def __init__(self, requests: socket.socket, at_fork: AtFork) -> None:
        self._requests = requests
        self._at_fork = at_fork
        self._shared: _Shared | None = None
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._runs: dict[int, _Run] = {}  # by both descriptors that are watched for it
        self._dying: dict[int, _Run] = {}  # killed and reported, by the descriptor of their process

    def serve(self) -> None:
        """Until the socket closes."""
        while True:
            now = time.monotonic()
            soonest = min((run.deadline for run in self._runs.values()), default=None)
            events = self._poll.poll(None if soonest is None else max(0.0, soonest - now) * 1000 + 1)
            for descriptor, _ in events:
                if descriptor == self._requests.fileno():
                    if not self._take_request():
                        return
                elif (run := self._runs.get(descriptor) or self._dying.get(descriptor)) is not None:
                    if descriptor == run.watched:
                        self._reap(run)
                    else:
                        self._end(run)
            now = time.monotonic()
            for run in {run.pid: run for run in self._runs.values() if run.deadline <= now}.values():
                self._end(run, timed_out=True)

    def _take_request(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._requests, 1 << 16, MAX_DESCRIPTORS)
        if not message:
            return False
        if not descriptors:
            self._shared = _Shared(guest_sealing.Filter(message), os.getuid(), os.getgid(), self._at_fork)
            self._requests.send(b"ready")
            return True
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, descriptors[0])
        seconds, nice, wants_process = REQUEST.unpack(message)
        request = _Request(seconds, nice, wants_process, control, descriptors[1:4], descriptors[4:])
        try:
            self._begin(request)
        except OSError as error:
            _tell(request.control, {"failed": str(error)[:200]})
            request.control.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        return True

    def _begin(self, request: _Request) -> None:
        assert self._shared is not None  # the filter comes first
        pid = guest_sealing.clone()
        if pid == 0:
            _run(request, self._shared)
        started = time.monotonic()
        try:
            watched = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        run = _Run(pid, watched, request.control, started + request.seconds)
        if request.wants_process:
            with contextlib.suppress(OSError):  # nobody wants it any more: the poll says so, too
                socket.send_fds(run.control, [b"\n"], [watched])
        for descriptor in (watched, run.control.fileno()):
            self._runs[descriptor] = run
            # The run reads its spec from the control socket: only the end of that is ours to see.
            self._poll.register(descriptor, select.POLLIN if descriptor == watched else select.POLLRDHUP)

    def _end(self, run: _Run, timed_out: bool = False) -> None:
        """Kill a run and report it. It may take its time to die, as what has no processor does: nobody waits for that."""
        os.kill(run.pid, signal.SIGKILL)
        self._report(run, signal.SIGKILL, timed_out)
        self._dying[run.watched] = run

    def _reap(self, run: _Run) -> None:
        """A run is dead, and with it all that it started."""
        _, status = os.waitpid(run.pid, 0)
        self._report(run, status, timed_out=False)
        self._poll.unregister(run.watched)
        self._dying.pop(run.watched, None)
        os.close(run.watched)

    def _report(self, run: _Run, status: int, timed_out: bool) -> None:
        """Once for each run."""
        if self._runs.pop(run.watched, None) is None:
            return
        del self._runs[run.control.fileno()]
        self._poll.unregister(run.control.fileno())
        with run.control:
            _tell(run.control, {"status": status, "timed_out": timed_out})


class _Run(NamedTuple):
    """A run: its process, a descriptor of that, its control socket, when it has to end."""

    pid: int
    watched: int
    control: socket.socket
    deadline: float


def serve(requests: socket.socket) -> None:
    """Load what solutions import, then start runs until the socket closes."""
    with _at_fork_aside() as handlers:
        for name in PRELOADED:
            __import__(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    _Zygote(requests, _IMPORTED + handlers).serve()


def main() -> None:
    """Command line of the sandbox."""
    if sys.argv[1] == "zygote":
        serve(socket.socket(fileno=int(sys.argv[2])))
        return
    with open(sys.argv[2], encoding="utf-8") as file:
        spec = json.load(file)
    guest_sealing.limit(spec["limits"])
    _register(_IMPORTED)
    guest_jobs.run_job(spec)


if __name__ == "__main__":
    main()
