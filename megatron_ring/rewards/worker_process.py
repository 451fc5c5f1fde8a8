"""One worker process of the reward pool, seen from the process that owns it: start, ask, kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import Reward, ScoreRequest, WorkerKind
from megatron_ring.rewards.sandbox import usage, watch
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.sweep import sweep
from megatron_ring.rewards.worker import HEADER, send_message

_START_LIMIT = 120.0  # seconds; a cold file system on a busy node, not part of any item's time
_WORKER_PROGRAM = "from megatron_ring.rewards.worker import main; main()"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkerTimeout(Exception):
    """The deadline passed."""


class WorkerDied(Exception):
    """The connection closed; the message says how the process ended. `killed`: by SIGKILL, which is never its own doing."""

    def __init__(self, how: str, killed: bool = False) -> None:
        super().__init__(how)
        self.killed = killed


class WorkerProcess:
    """One worker process and the socket to it. Used by one lane only.

    Raises:
        OSError: the machine has no process, descriptor or memory for it.
    """

    def __init__(self, kind: WorkerKind, memory_bytes: int, variables: dict[str, str]) -> None:
        self.kind = kind
        environment = dict(os.environ) | variables
        paths = [str(_PACKAGE_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        ours, theirs = socket.socketpair()
        arguments = [str(theirs.fileno()), str(os.getpid()), kind, str(memory_bytes)]
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _WORKER_PROGRAM, *arguments],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
        except OSError:
            ours.close()
            raise
        self.connection = ours

    def await_ready(self) -> None:
        """Wait until the verifiers are loaded.

        Raises:
            UserError: they could not be loaded.
            WorkerDied: somebody killed it.
            MachineFailure: the machine has nothing left for what they need.
        """
        try:
            message = self._receive(time.monotonic() + _START_LIMIT)
            if "user_error" in message:
                raise UserError(message["user_error"])
            if "machine" in message:
                raise MachineFailure(message["machine"])
            problem = message.get("error")
        except WorkerTimeout:
            problem = f"not ready after {_START_LIMIT:g} s"
        except WorkerDied as error:
            if error.killed:
                raise
            problem = str(error)
        if problem:
            raise UserError(f"a verifier process could not start ({problem}): reinstall the project's requirements")

    def ask(self, request: ScoreRequest, time_limit: float) -> tuple[Reward, bool]:
        """Score one request; also whether the worker retires after it. Where it loads a library first, the time begins when
        that is there.

        Raises:
            UserError: nothing can be scored on this machine.
            MachineFailure: the machine has nothing left to score this one with, for now.
            WorkerTimeout: no answer within `time_limit` seconds.
            WorkerDied: the process ended instead of answering.
        """
        deadline = self._begin(time_limit)
        self.connection.settimeout(time_limit)
        try:
            send_message(self.connection, asdict(request))
        except TimeoutError:
            raise WorkerTimeout from None
        except OSError:
            raise self._died() from None
        loads = False
        try:
            while "loading" in (message := self._receive(deadline)):
                loads = message["loading"]
                deadline = time.monotonic() + _START_LIMIT if loads else self._begin(time_limit)
        except WorkerTimeout:
            if loads:
                raise MachineFailure(f"a library was not loaded within {_START_LIMIT:g} s") from None
            raise
        if "user_error" in message:
            raise UserError(message["user_error"])
        if "machine" in message:
            raise MachineFailure(message["machine"])
        reward = Reward(float(message["value"]), str(message["reason"]), message["detail"])
        return reward, bool(message["retire"])

    def _begin(self, time_limit: float) -> float:
        """Time runs from now on: the deadline."""
        self._before = usage.times([self.process.pid])
        return time.monotonic() + time_limit

    def starved(self, time_limit: float) -> bool:
        """Whether the time of the last item went by while the process waited for a processor; call it while it is alive."""
        now = usage.times([self.process.pid])
        return watch.is_starved(
            now.cpu_seconds - self._before.cpu_seconds, now.waited_seconds - self._before.waited_seconds, time_limit
        )

    def kill(self) -> None:
        """End the process at once, and remove what it leaves behind as far as that is dead already."""
        self.process.kill()
        self.connection.close()
        self.process.wait()
        if self.kind == "code":
            sweep()

    def _receive(self, deadline: float) -> dict[str, Any]:
        (size,) = HEADER.unpack(self._receive_bytes(HEADER.size, deadline))
        message: dict[str, Any] = json.loads(self._receive_bytes(size, deadline))
        return message

    def _receive_bytes(self, size: int, deadline: float) -> bytes:
        received = b""
        while len(received) < size:
            # Never 0, which would mean non-blocking: an answer that is already there still counts.
            self.connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            try:
                part = self.connection.recv(size - len(received))
            except TimeoutError:
                raise WorkerTimeout from None
            except OSError:
                raise self._died() from None
            if not part:
                raise self._died()
            received += part
        return received

    def _died(self) -> WorkerDied:
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return WorkerDied("closed its connection")
        if code < 0:
            with contextlib.suppress(ValueError):
                return WorkerDied(f"killed by {signal.Signals(-code).name}", killed=-code == signal.SIGKILL)
        return WorkerDied(f"exit status {code}")
