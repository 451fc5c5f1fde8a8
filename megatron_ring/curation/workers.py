"""Work on shards, in this process or side by side in others. They die with this one, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any

from megatron_ring.errors import UserError

Call = tuple[Callable[..., Any], tuple[Any, ...]]


def _die_with_main() -> None:
    """Have this worker killed when the process ends that gives it work. Its parent is the fork server, which ends with the
    last worker alone."""
    main = multiprocessing.parent_process()
    assert main is not None
    sentinel = main.sentinel

    def watch() -> None:
        wait([sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


class Workers:
    """So many processes. They start with the first work, from a server that is not this process: it has no threads and has
    loaded nothing heavy. Use as a context manager."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, calls: Sequence[Call], on_done: Callable[[], None]) -> list[Any]:
        """What each call returns, in order. `on_done` is called after each.

        Raises:
            UserError: of a call; or a process was killed.
        """
        if self._processes == 1 or len(calls) < 2:
            results = []
            for function, arguments in calls:
                results.append(function(*arguments))
                on_done()
            return results
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self._processes, context, _die_with_main)
        futures: list[Future[Any]] = []
        try:
            futures += [self._pool.submit(function, *arguments) for function, arguments in calls]
            for future in as_completed(futures):
                future.result()
                on_done()
        except BrokenProcessPool:
            raise UserError(
                "a process was killed, as the machine does for want of memory: use fewer --processes; the same command "
                "goes on where this one stopped"
            ) from None
        finally:
            for future in futures:
                future.cancel()
        return [future.result() for future in futures]
