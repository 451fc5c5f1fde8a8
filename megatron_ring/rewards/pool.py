"""Score responses in worker processes that are killed when they take too long.

Each lane is a thread that owns one worker process and gives it one item at a time. A lane waits for its worker with a
deadline; past it the worker is killed (SIGKILL) and the next item gets a new one. Workers are plain subprocesses, not
forks: they share no CUDA context, process group, lock or thread with a training rank. They start with the first item
that needs one, one of them with `start`, and die with the process that started them (see `worker`).
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import NamedTuple

from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import WORKERS_VARIABLE, Reward, ScoreRequest, WorkerKind
from megatron_ring.rewards.lane import Item, Lane, Tally
from megatron_ring.rewards.reasons import printable_line
from megatron_ring.rewards.registry import verifier_for
from megatron_ring.rewards.sandbox.bwrap import UNSAFE_VARIABLE
from megatron_ring.rewards.sandbox.sweep import sweep
from megatron_ring.rewards.worker_process import WorkerProcess

DEFAULT_TIME_LIMIT = 5.0
DEFAULT_MEMORY_BYTES = 4 << 30

_QUICK_CHARACTERS = 1 << 18  # longer responses are searched for their box in a worker
_WAITING = 4096  # items; past them `submit` waits
_DYING = 5.0  # seconds that `close` waits for runs of the sandbox to be dead
_THREAD_PAUSES = (0.2, 1.0, 3.0)  # seconds before each further try to start a thread


class _Task(NamedTuple):
    """An item and the promise of its reward; `after`: it waits for that, and is given up where that is cancelled."""

    item: Item
    future: Future[Reward]
    after: Future[None] | None = None


@dataclass(frozen=True)
class _Lanes:
    """The threads for one kind of worker, and what waits for them. None in the queue ends a thread."""

    tasks: queue.Queue[_Task | None]
    threads: list[threading.Thread]


class RewardPool:
    """Scores responses, in order; use it as a context manager.

    Args:
        workers: worker processes of each kind that is needed (answers, instructions, code), each of 25 to 90 MB.
        time_limit: seconds of wall clock per item; past it the item's reward is 0 and its worker is killed. Domains
            whose items take longer (code) have a limit of their own.
        memory_bytes: address space of a worker (RLIMIT_AS). Code has its limits in the sandbox instead.
        unsafe_code: run solutions without a sandbox where there is none. For trusted code only.

    Raises:
        UserError: fewer than one worker, or a limit that is not positive.
    """

    def __init__(
        self,
        workers: int = 4,
        time_limit: float = DEFAULT_TIME_LIMIT,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        unsafe_code: bool = False,
    ) -> None:
        if workers < 1:
            raise UserError(f"reward workers: {workers} given, use at least 1")
        if not 0 < time_limit < float("inf"):
            raise UserError(f"reward time limit: {time_limit} s given, use a positive number of seconds")
        if memory_bytes < 1:
            raise UserError(f"reward memory limit: {memory_bytes} bytes given, use a positive number")
        self._workers = workers
        self._time_limit = time_limit
        self._memory_bytes = memory_bytes
        self._variables = {WORKERS_VARIABLE: str(workers), UNSAFE_VARIABLE: str(int(unsafe_code))}
        if unsafe_code:
            said = "programs that a model wrote run WITHOUT a sandbox where bubblewrap does not work"
            print(f"warning: unsafe code is allowed: {said}", file=sys.stderr, flush=True)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._live: set[WorkerProcess] = set()
        self._lanes: dict[WorkerKind, _Lanes] = {}
        self._needed: dict[WorkerKind, Future[None]] = {}
        self._tally = Tally()

    def start(self, domains: Iterable[str]) -> None:
        """Start a worker for each kind that these domains need, and wait for it: what is missing is said now, not later.
        The others come up with the first response that needs a worker, all together, while the first one scores it: one that
        started with a response of its own would make that wait for seconds.

        Raises:
            UserError: a domain has no verifier, or its workers cannot work here.
        """
        kinds = dict.fromkeys(verifier_for(domain).worker for domain in domains)
        item = Item(None, self._time_limit)
        waiting = [self._put(kind, _Task(item, Future())) for kind in kinds]
        for kind in kinds:
            if kind not in self._needed:  # a later start would have all lanes wait
                with self._lock:
                    self._needed[kind] = Future()
                for _ in self._lanes_of(kind).threads[1:]:
                    self._put(kind, _Task(item, Future(), self._needed[kind]))
        for prepare in dict.fromkeys(verifier_for(domain).prepare for domain in domains):
            if prepare is not None:
                prepare()
        for future in waiting:
            future.result()

    def submit(self, request: ScoreRequest) -> Future[Reward]:
        """Start scoring one response; generation can go on meanwhile. `result()` waits for the reward.

        What can be decided within milliseconds is decided here. A response whose scoring hangs, crashes or runs out of
        memory gets reward 0 with the reason; other items are not affected. Waits while thousands of items are waiting.

        Where the machine fails an item is tried again a few times. Then it is left without a verdict: its reward is 0, says
        why under `machine_failure` in `detail`, and counts in `machine_failures`.

        Raises:
            UserError: the domain has no verifier, or no thread can be started. (From the future: workers cannot work at
                all, or too many items are without a verdict.)
            RuntimeError: the pool is closed.
        """
        verifier = verifier_for(request.domain)
        future: Future[Reward] = Future()
        if verifier.quick_score is not None and len(request.response) <= _QUICK_CHARACTERS:
            reward = verifier.quick_score(request)
            if reward is not None:
                future.set_result(_presentable(reward))
                return future
        time_limit = max(self._time_limit, verifier.time_limit or 0.0)
        self._settle(verifier.worker)
        return self._put(verifier.worker, _Task(Item(request, time_limit), future))

    def score(self, requests: Iterable[ScoreRequest]) -> list[Reward]:
        """Score responses and wait; rewards in the order of the requests. Raises what `submit` and its futures do."""
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are running now."""
        with self._lock:
            return [worker.process.pid for worker in self._live]

    @property
    def machine_failures(self) -> int:
        """Items that are without a verdict so far, because of the machine."""
        return self._tally.unscored

    def close(self) -> None:
        """Kill the workers and cancel what is not scored yet. Safe to call twice."""
        with self._lock:
            self._closing.set()
            live, lanes = list(self._live), list(self._lanes.values())
            for needed in self._needed.values():
                needed.cancel()
        for group in lanes:
            with contextlib.suppress(queue.Empty):
                while True:
                    task = group.tasks.get_nowait()
                    if task is not None:
                        task.future.cancel()
        for worker in live:
            worker.process.kill()
        for group in lanes:
            for _ in group.threads:
                group.tasks.put(None)
        for group in lanes:
            for thread in group.threads:
                thread.join()
        if "code" in self._lanes:
            sweep(_DYING)

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, kind: WorkerKind) -> None:
        """Workers of this kind are needed: those that wait for it start."""
        with self._lock:
            needed = self._needed.get(kind)
            if needed is not None and not needed.done():
                needed.set_result(None)

    def _put(self, kind: WorkerKind, task: _Task) -> Future[Reward]:
        lanes = self._lanes_of(kind)
        while True:
            if self._closing.is_set():
                raise RuntimeError("the reward pool is closed")
            with contextlib.suppress(queue.Full):
                lanes.tasks.put(task, timeout=0.2)
                return task.future

    def _lanes_of(self, kind: WorkerKind) -> _Lanes:
        with self._lock:
            if self._closing.is_set():
                raise RuntimeError("the reward pool is closed")
            if kind not in self._lanes:
                tasks: queue.Queue[_Task | None] = queue.Queue(_WAITING)
                # Daemons: a caller that forgets `close` can still exit, and its workers die with it.
                self._lanes[kind] = _Lanes(tasks, self._start_threads(kind, tasks))
            return self._lanes[kind]

    def _start_threads(self, kind: WorkerKind, tasks: queue.Queue[_Task | None]) -> list[threading.Thread]:
        """As many as there are workers, or as the machine allows: one is enough to go on."""
        threads: list[threading.Thread] = []
        worked = threading.Event()
        for pause in (*_THREAD_PAUSES, 0.0):
            try:
                while len(threads) < self._workers:
                    name = f"reward-{kind}-{len(threads)}"
                    thread = threading.Thread(target=self._run_lane, args=(kind, tasks, worked), name=name, daemon=True)
                    thread.start()
                    threads.append(thread)
            except RuntimeError:  # no thread can be started
                if threads:
                    break
                time.sleep(pause)
        if not threads:
            raise UserError("rewards: this machine starts no further thread: end other programs, or raise `ulimit -u`")
        return threads

    def _run_lane(self, kind: WorkerKind, tasks: queue.Queue[_Task | None], worked: threading.Event) -> None:
        lane = Lane(lambda: self._start_worker(kind), self._end_worker, self._closing, worked, self._tally)
        while (task := tasks.get()) is not None:
            if self._closing.is_set() or (task.after is not None and not _comes(task.after)):
                task.future.cancel()
            if not task.future.set_running_or_notify_cancel():
                continue
            outcome = lane.score(task.item)
            if self._closing.is_set() and not isinstance(outcome, Reward):  # it was ended by `close`, not by the response
                outcome = CancelledError()
            if isinstance(outcome, Reward):
                task.future.set_result(_presentable(outcome))
            else:
                task.future.set_exception(outcome)
        lane.discard()

    def _start_worker(self, kind: WorkerKind) -> WorkerProcess:
        with self._lock:
            if self._closing.is_set():
                raise CancelledError
            worker = WorkerProcess(kind, self._memory_bytes, self._variables)
            self._live.add(worker)
            return worker

    def _end_worker(self, worker: WorkerProcess) -> None:
        with self._lock:
            self._live.discard(worker)
        worker.kill()


def _comes(awaited: Future[None]) -> bool:
    """Waits for it, or for its end."""
    with contextlib.suppress(CancelledError):
        return awaited.exception() is None
    return False


def _presentable(reward: Reward) -> Reward:
    line = printable_line(reward.reason)
    return reward if line == reward.reason else replace(reward, reason=line)
