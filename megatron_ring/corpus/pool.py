"""Worker processes that do the same to many items, whose results come back in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from megatron_ring.errors import UserError
from megatron_ring.lifetime import die_with_parent

Label = TypeVar("Label")
Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerKilledError(UserError):
    """A worker process was killed; what it did can be done again."""


class WorkerPool(Generic[Item, Result]):
    """`workers` processes, or this one where one is enough. Use as a context manager.

    The processes are forked, so that whatever `work` holds is there at once: for a process that has started no thread yet.
    """

    def __init__(self, work: Callable[[Item], Result], workers: int, mend: str) -> None:
        """`mend`: what the user can do where a worker is killed."""
        self._work, self._workers, self._mend = work, workers, mend
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> WorkerPool[Item, Result]:
        if self._workers > 1:
            given = (self._work, os.getpid())
            self._pool = ProcessPoolExecutor(self._workers, get_context("fork"), _start_worker, given)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def in_order(self, items: Iterable[tuple[Label, Item]]) -> Iterator[tuple[Label, Result]]:
        """Each label with what becomes of its item; at most a few items for each worker are in memory.

        Raises:
            UserError: what the work raises; a worker was killed.
        """
        waiting: deque[tuple[Label, Future[Any]]] = deque()
        try:
            for label, item in items:
                if self._pool is None:
                    yield label, self._work(item)
                    continue
                waiting.append((label, self._pool.submit(_work, item)))
                if len(waiting) > 2 * self._workers:
                    first, result = waiting.popleft()
                    yield first, result.result()
            while waiting:
                first, result = waiting.popleft()
                yield first, result.result()
        except BrokenProcessPool:
            raise WorkerKilledError(f"a worker was killed, likely for want of memory: {self._mend}") from None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Another piece of work, for a worker that is free."""
        if self._pool is not None:
            return self._pool.submit(function, *arguments)
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done


@dataclass
class _Worker:
    """What a worker process holds; one a process."""

    work: Callable[[Any], Any] | None = None


_worker = _Worker()


def _start_worker(work: Callable[[Any], Any], parent: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    die_with_parent()
    if os.getppid() != parent:  # it was killed before that took effect
        os._exit(1)
    # There is a worker for each core: the tokenizers library would start as many threads in every one of them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker.work = work


def _work(item: Any) -> Any:
    if _worker.work is None:
        raise RuntimeError("a worker was not started by _start_worker")
    return _worker.work(item)
