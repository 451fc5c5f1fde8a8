"""Python runs from a warm interpreter: see `guest_zygote` for what isolates them from each other."""

from __future__ import annotations

import functools
import json
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox import bwrap, usage
from megatron_ring.rewards.sandbox.cgroups import Delegation
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.images import Limits, python_interpreter
from megatron_ring.rewards.sandbox.run_group import RunGroup
from megatron_ring.rewards.sandbox.seccomp import build_filter
from megatron_ring.rewards.sandbox.watch import NICE, PATIENCE, Watch

GUEST_FILES = (
    "guest_zygote.py", "guest_sealing.py", "guest_jobs.py", "guest_values.py", "guest_assertions.py", "guest_server.py",
    "guest_remote.py",
)  # fmt: skip
_HERE = Path(__file__).parent
_START_LIMIT = 60.0
_REQUEST = struct.Struct("!di?")
GRACE = 0.5  # the zygote ends a run at its limit; past this much more we do


def job_spec(job: str, limits: Limits, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the guest wants to know of a run."""
    return {"job": job, "seconds": limits.seconds, "limits": _numbers(limits), **fields}


@functools.lru_cache
def _numbers(limits: Limits) -> dict[str, Any]:
    """The same dictionary for the same limits: nobody changes it."""
    return asdict(limits) | {"cpu_seconds": limits.cpu_seconds}


class WarmHandle:
    """A run of the zygote, held by its control socket: closing it kills the run. `end` is closed once it is over."""

    def __init__(self, control: socket.socket, limits: Limits, group: RunGroup | None, alone: bool, end: ExitStack) -> None:
        self._control, self._group, self._end = control, group, end
        self._heard = bytearray()
        self._pidfd = -1
        self.watch = Watch(limits, group, lambda: usage.process_of(self._pidfd) if self._pidfd >= 0 else 0, alone)

    def fileno(self) -> int:
        return self._control.fileno()

    def ended(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if descriptors:
            self._pidfd = descriptors[0]
            self._end.callback(os.close, self._pidfd)
        self._heard += data
        if b"status" not in self._heard:
            return not data
        if self._group is not None:
            self._group.over = True
        return True

    def outcome(self) -> tuple[int | None, int | None, bool]:
        messages: dict[str, Any] = {}
        for line in self._heard.splitlines():
            if line:
                messages |= json.loads(line)
        if "failed" in messages:
            raise MachineFailure(f"a run could not be set up ({messages['failed']})")
        if "status" not in messages:
            raise MachineFailure("the warm interpreter died")
        code = os.waitstatus_to_exitcode(messages["status"])
        return (code, None, messages["timed_out"]) if code >= 0 else (None, -code, messages["timed_out"])

    def kill(self) -> None:
        self.ended()  # where that was not asked before
        self._control.close()
        self._end.close()


class WarmPython:
    """A sandboxed interpreter that forks a sealed process per run; starts with the first run. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # bwrap dies with the THREAD that started it, so one thread does that and lives as long as this object.
        self._orders: queue.SimpleQueue[queue.SimpleQueue[Exception | None] | None] = queue.SimpleQueue()
        self._starter: threading.Thread | None = None
        self._worked = False

    def start(
        self, spec: dict[str, Any], limits: Limits, standard: list[int], delegation: Delegation | None, alone: bool = False
    ) -> WarmHandle:
        """Start one job on these descriptors for stdin, stdout and stderr.

        Raises:
            UserError: the sandbox does not start, and never did.
            OSError: the machine has no process, descriptor or memory for it.
            MachineFailure: the sandbox did start before, and does not now or does not stay up.
        """
        payload = json.dumps(spec).encode()
        with ExitStack() as end:
            group = None
            if delegation is not None:
                group = delegation.group(limits, alone)
                end.callback(delegation.give_back, group)
            nice = 0 if alone or (group is not None and group.bounds_cpu) else NICE
            seconds = spec["seconds"] * (PATIENCE if alone else 1)
            request = _REQUEST.pack(seconds, nice, group is None)  # a group knows its processes
            control = self._request(request, standard, () if group is None else group.entries)
            control.settimeout(seconds + 10)
            try:
                control.sendall(len(payload).to_bytes(8, "big") + payload)
            except BrokenPipeError:  # a run that could not be set up: it says so itself
                pass
            except OSError:
                control.close()
                raise
            control.setblocking(False)
            return WarmHandle(control, limits, group, alone, end.pop_all())

    def _request(self, request: bytes, standard: list[int], entries: Sequence[str]) -> socket.socket:
        """Ask the zygote for a run; the control socket to it. A zygote that died is replaced once."""
        with ExitStack() as ours:
            groups = [os.open(entry, os.O_WRONLY | os.O_CLOEXEC) for entry in entries]
            for descriptor in groups:
                ours.callback(os.close, descriptor)
            for _ in range(2):
                control, theirs = socket.socketpair()
                try:
                    with theirs, self._lock:
                        requests = self._ensure()
                        try:
                            socket.send_fds(requests, [request], [theirs.fileno(), *standard, *groups])
                        except (BrokenPipeError, ConnectionResetError):
                            self._stop()
                            raise
                    return control
                except (BrokenPipeError, ConnectionResetError):
                    control.close()
                except BaseException:
                    control.close()
                    raise
        raise MachineFailure("the warm interpreter does not stay up")

    def close(self) -> None:
        """Kill the zygote and with it every run. A later run would start a new one."""
        with self._lock:
            self._stop()
            if self._starter is not None:
                self._orders.put(None)
                self._starter.join()
                self._starter = None

    def __enter__(self) -> WarmPython:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ensure(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._requests is None:
            if self._starter is None:
                self._starter = threading.Thread(target=self._run_starter, name="sandbox-starter", daemon=True)
                self._starter.start()
            answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
            self._orders.put(answer)
            problem = answer.get()
            if problem is not None:
                said = f"the warm sandbox did not start ({problem})"
                raise MachineFailure(said) if self._worked else UserError(said)
            self._worked = True
        assert self._requests is not None
        return self._requests

    def _run_starter(self) -> None:
        while (answer := self._orders.get()) is not None:
            try:
                self._launch()
                answer.put(None)
            except Exception as error:
                answer.put(error)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ExitStack() as stack:
            stack.enter_context(theirs)
            python, binds = python_interpreter()
            command = bwrap.confinement((*binds, "/usr/bin/prlimit"), Limits(), proc="write")
            command += ["--dir", "/empty"]
            descriptors = [theirs.fileno()]
            for path, content in guest_files().items():
                descriptors.append(stack.enter_context(bwrap.memory_file(content)))
                command += ["--ro-bind-data", str(descriptors[-1]), path]
            inner = ["/usr/bin/prlimit", "--stack=268435456:", "--core=0:0", "--", python, "-I", "-B"]
            process = subprocess.Popen(
                [*command, "--remount-ro", "/", "--", *inner, "/guest/guest_zygote.py", "zygote", str(theirs.fileno())],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=bwrap.environment(),
                **bwrap.account(),
            )
        self._process, self._requests = process, ours
        ours.settimeout(_START_LIMIT)
        ours.send(build_filter())
        if ours.recv(16) != b"ready":
            assert process.stderr is not None
            detail = process.stderr.read(2000).decode(errors="replace").strip()
            self._stop()
            raise OSError(detail.splitlines()[-1] if detail else "it ended at once")

    def _stop(self) -> None:
        if self._requests is not None:
            self._requests.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stderr is not None:
                self._process.stderr.close()
        self._requests = self._process = None


def guest_files() -> dict[str, bytes]:
    """The guest's files by their paths inside."""
    return {f"/guest/{name}": (_HERE / name).read_bytes() for name in GUEST_FILES}
