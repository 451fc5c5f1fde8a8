"""Python runs from a warm interpreter: see `guest_zygote` for what isolates them from each other."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import subprocess
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import Limits, python_interpreter
from megatron_ring.rewards.sandbox.seccomp import build_filter

GUEST_FILES = (
    "guest_zygote.py", "guest_jobs.py", "guest_values.py", "guest_assertions.py", "guest_server.py", "guest_remote.py",
)  # fmt: skip
_HERE = Path(__file__).parent
_START_LIMIT = 60.0
_REQUEST = struct.Struct("!d")
GRACE = 0.5  # the zygote ends a run at its limit; past this much more we do


def job_spec(job: str, limits: Limits, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the guest wants to know of a run."""
    numbers = asdict(limits) | {"cpu_seconds": limits.cpu_seconds}
    return {"job": job, "seconds": limits.seconds, "limits": numbers, **fields}


class WarmHandle:
    """A run of the zygote, held by its control socket: closing it kills the run."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def fileno(self) -> int:
        return self._control.fileno()

    def outcome(self) -> tuple[int | None, int | None, bool]:
        with contextlib.suppress(OSError):
            message = self._control.recv(4096)
            if message:
                result = json.loads(message)
                code = os.waitstatus_to_exitcode(result["status"])
                return (code, None, result["timed_out"]) if code >= 0 else (None, -code, result["timed_out"])
        return 125, None, False  # the zygote died, or could not start the run: its stderr says

    def kill(self) -> None:
        self._control.close()


class WarmPython:
    """A sandboxed interpreter that forks a sealed process per run; starts with the first run. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # bwrap dies with the THREAD that started it, so one thread does that and lives as long as this object.
        self._orders: queue.SimpleQueue[queue.SimpleQueue[Exception | None] | None] = queue.SimpleQueue()
        self._starter: threading.Thread | None = None

    def start(self, spec: dict[str, Any], standard: list[int]) -> WarmHandle:
        """Start one job on these descriptors for stdin, stdout and stderr.

        Raises:
            UserError: the sandbox does not start.
        """
        payload = json.dumps(spec).encode()
        for attempt in (1, 2):
            ours, theirs = socket.socketpair()
            try:
                with theirs, self._lock:
                    requests = self._ensure()
                    socket.send_fds(requests, [_REQUEST.pack(spec["seconds"])], [theirs.fileno(), *standard])
                ours.settimeout(spec["seconds"] + 10)
                ours.sendall(len(payload).to_bytes(8, "big") + payload)
                return WarmHandle(ours)
            except OSError as error:  # the zygote died; a new one is started once
                ours.close()
                with self._lock:
                    self._stop()
                if attempt == 2:
                    raise UserError(f"the warm sandbox does not stay up ({error})") from None
        raise AssertionError

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
                raise UserError(f"the warm sandbox did not start ({problem})")
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
            command = bwrap.confinement((*binds, "/usr/bin/prlimit"), Limits(), own_proc=True)
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
