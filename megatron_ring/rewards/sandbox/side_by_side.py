"""Runs side by side, of which the first failure is the verdict: the others are killed, not waited for."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TypeVar

_Problem = TypeVar("_Problem")
_here = threading.local()  # `stop`: the descriptor that this thread's runs look at


class Stopped(Exception):
    """A run was ended, or not begun, because its result is of no use any more."""


def stop_descriptor() -> int | None:
    """A descriptor that becomes readable when runs of this thread are to end; None where nobody would end them."""
    return getattr(_here, "stop", None)


def wait_or_stop(seconds: float) -> None:
    """Sleep. Raises `Stopped` where the runs of this thread are to end."""
    stop = stop_descriptor()
    if select.select([] if stop is None else [stop], [], [], seconds)[0]:
        raise Stopped


def first_problem(problem_of: Callable[[int], _Problem | None], count: int, parallel: int) -> tuple[int, _Problem] | None:
    """Call `problem_of` for 0 … count-1, up to `parallel` at a time; a result that is not None, with its index.

    The first to come ends the others at once: the sandbox's runs in them are killed, not waited for. Of several that are
    there the first in order counts. What `problem_of` raises is raised here, likewise.
    """
    if count == 0:
        return None
    first = problem_of(0)  # most wrong solutions fail at once: no need to start others beside it
    if first is not None or count == 1:
        return None if first is None else (0, first)
    stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def work(index: int) -> _Problem | None:
        _here.stop = stop
        return problem_of(index)

    try:
        with ThreadPoolExecutor(max_workers=min(parallel, count - 1)) as pool:
            futures: list[Future[_Problem | None]] = [pool.submit(work, index) for index in range(1, count)]
            try:
                for done in as_completed(futures):
                    if done.result() is not None:
                        return next(
                            (index, problem)
                            for index, future in enumerate(futures, start=1)
                            if future.done() and (problem := future.result()) is not None
                        )
                return None
            finally:
                os.eventfd_write(stop, 1)
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        with contextlib.suppress(OSError):
            os.close(stop)
