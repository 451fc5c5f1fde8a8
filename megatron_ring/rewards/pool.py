"""Score responses in worker processes that are killed when they take too long.

Each lane is a thread that owns one worker process and gives it one item at a time. A lane waits for its worker with a
deadline; past it the worker is killed (SIGKILL) and the next item gets a new one. Workers are plain subprocesses, not
forks: they share no CUDA context, process group, lock or thread with a training rank. They start with the first item
that needs one, and die with the process that started them (see `worker`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.registry import verifier_for
from megatron_ring.rewards.worker import HEADER, send_message

DEFAULT_TIME_LIMIT = 5.0
DEFAULT_MEMORY_BYTES = 4 << 30

_START_LIMIT = 120.0  # seconds; a cold file system on a busy node, not part of any item's time
_QUICK_CHARACTERS = 1 << 18  # longer responses are searched for their box in a worker
_WORKER_PROGRAM = "from megatron_ring.rewards.worker import main; main()"
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class _WorkerTimeout(Exception):
    """The deadline passed."""


class _WorkerDied(Exception):
    """The connection closed; the message says how the process ended."""


class _Worker:
    """One worker process and the socket to it. Used by one lane only."""

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        paths = [str(_PACKAGE_ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        arguments = [str(theirs.fileno()), str(os.getpid()), str(memory_bytes)]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _WORKER_PROGRAM, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        self.connection = ours

    def await_ready(self) -> None:
        """Wait until the verifiers are loaded.

        Raises:
            UserError: they could not be loaded.
        """
        try:
            message = self._receive(time.monotonic() + _START_LIMIT)
            problem = message.get("error")
        except _WorkerTimeout:
            problem = f"not ready after {_START_LIMIT:g} s"
        except _WorkerDied as error:
            problem = str(error)
        if problem:
            raise UserError(f"a verifier process could not start ({problem}): check that math-verify is installed")

    def ask(self, request: ScoreRequest, time_limit: float) -> tuple[Reward, bool]:
        """Score one request; also whether the worker retires after it.

        Raises:
            _WorkerTimeout: no answer within `time_limit` seconds.
            _WorkerDied: the process ended instead of answering.
        """
        deadline = time.monotonic() + time_limit
        self.connection.settimeout(time_limit)
        try:
            send_message(self.connection, asdict(request))
        except TimeoutError:
            raise _WorkerTimeout from None
        except OSError:
            raise self._died() from None
        message = self._receive(deadline)
        return Reward(float(message["value"]), str(message["reason"])), bool(message["retire"])

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.connection.close()
        self.process.wait()

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
                raise _WorkerTimeout from None
            except OSError:
                raise self._died() from None
            if not part:
                raise self._died()
            received += part
        return received

    def _died(self) -> _WorkerDied:
        try:
            code = self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            return _WorkerDied("closed its connection")
        if code < 0:
            with contextlib.suppress(ValueError):
                return _WorkerDied(f"killed by {signal.Signals(-code).name}")
        return _WorkerDied(f"exit status {code}")


class RewardPool:
    """Scores responses, in order, at most `workers` at a time; use it as a context manager.

    Args:
        workers: worker processes, each of about 70 MB once started.
        time_limit: seconds of wall clock per item; past it the item's reward is 0 and its worker is killed.
        memory_bytes: address space of a worker (RLIMIT_AS).

    Raises:
        UserError: fewer than one worker, or a limit that is not positive.
    """

    def __init__(
        self,
        workers: int = 4,
        time_limit: float = DEFAULT_TIME_LIMIT,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        if workers < 1:
            raise UserError(f"reward workers: {workers} given, use at least 1")
        if not 0 < time_limit < float("inf"):
            raise UserError(f"reward time limit: {time_limit} s given, use a positive number of seconds")
        if memory_bytes < 1:
            raise UserError(f"reward memory limit: {memory_bytes} bytes given, use a positive number")
        self._time_limit = time_limit
        self._memory_bytes = memory_bytes
        self._tasks: queue.SimpleQueue[tuple[ScoreRequest, Future[Reward]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._live: set[_Worker] = set()
        # Daemons: a caller that forgets `close` can still exit, and its workers die with it.
        self._lanes = [
            threading.Thread(target=self._run_lane, name=f"reward-lane-{index}", daemon=True)
            for index in range(workers)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(self, request: ScoreRequest) -> Future[Reward]:
        """Start scoring one response; generation can go on meanwhile. `result()` waits for the reward.

        What can be decided within milliseconds is decided here. A response whose scoring hangs, crashes or runs out of
        memory gets reward 0 with the reason; other items are not affected.

        Raises:
            UserError: the domain has no verifier. (From the future: workers cannot start at all.)
            RuntimeError: the pool is closed.
        """
        verifier = verifier_for(request.domain)
        future: Future[Reward] = Future()
        if verifier.quick_score is not None and len(request.response) <= _QUICK_CHARACTERS:
            reward = verifier.quick_score(request)
            if reward is not None:
                future.set_result(reward)
                return future
        with self._lock:
            if self._closed:
                raise RuntimeError("the reward pool is closed")
            self._tasks.put((request, future))
        return future

    def score(self, requests: Iterable[ScoreRequest]) -> list[Reward]:
        """Score responses and wait; rewards in the order of the requests. Raises what `submit` and its futures do."""
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running now."""
        with self._lock:
            return [worker.process.pid for worker in self._live]

    def close(self) -> None:
        """Kill the workers and cancel what is not scored yet. Safe to call twice."""
        with self._lock:
            self._closed = True
            live = list(self._live)
        with contextlib.suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[1].cancel()
        for worker in live:
            worker.process.kill()
        for _ in self._lanes:
            self._tasks.put(None)
        for lane in self._lanes:
            lane.join()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_lane(self) -> None:
        worker: _Worker | None = None
        while (task := self._tasks.get()) is not None:
            request, future = task
            if not future.set_running_or_notify_cancel():
                continue
            retire = True
            outcome: Reward | Exception
            try:
                worker = self._usable(worker)
                outcome, retire = worker.ask(request, self._time_limit)
            except _WorkerTimeout:
                outcome = Reward(0.0, f"time limit of {self._time_limit:g} s exceeded")
            except _WorkerDied as error:
                outcome = Reward(0.0, f"the verifier's process died: {error}")
            except Exception as error:
                outcome = error
            if retire:
                self._discard(worker)
                worker = None
                if self._closed:  # it was killed by `close`, not by the response
                    outcome = CancelledError()
            if isinstance(outcome, Reward):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        self._discard(worker)

    def _usable(self, worker: _Worker | None) -> _Worker:
        """The lane's worker, or a new one when there is none or when it died while it was idle."""
        if worker is not None and worker.process.poll() is None:
            return worker
        self._discard(worker)
        with self._lock:
            if self._closed:
                raise CancelledError
            worker = _Worker(self._memory_bytes)
            self._live.add(worker)
        try:
            worker.await_ready()
        except UserError:
            self._discard(worker)
            raise
        return worker

    def _discard(self, worker: _Worker | None) -> None:
        if worker is not None:
            with self._lock:
                self._live.discard(worker)
            worker.kill()
