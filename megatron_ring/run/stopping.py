"""Ending a run early and in order: a signal asks, and the run saves at the end of the step under way.

SIGTERM is what a scheduler sends before it takes a machine away. torchrun passes it on and gives its processes 30 seconds.
SIGUSR1 means the same, and torchrun takes no part in it when it was started with SIGUSR1 ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from megatron_ring.errors import STOPPED_BY_SIGNAL, StoppedBySignal
from megatron_ring.parallel import collectives

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether someone has asked this run to end. Use it as a context around the steps; behind it signals do what they did
    before."""

    def __init__(self, grace_seconds: float, last_checkpoint: Callable[[], str]) -> None:
        """`last_checkpoint`: where the run would go on, in words, for what is said when the grace is over."""
        self._grace, self._last_checkpoint = grace_seconds, last_checkpoint
        self._asked = ""  # the signal's name
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._asked and isinstance(error, RuntimeError):  # another process has ended before this one
            last = (str(error).strip().splitlines() or ["?"])[-1]
            raise StoppedBySignal(f"stopped by {self._asked} within a step ({last}); {self._last_checkpoint()}") from None

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            return
        self._asked = signal.Signals(number).name
        self._timer = threading.Timer(self._grace, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        text = f"stopped by {self._asked}: the step was not saved within --grace-seconds {self._grace:g}"
        print(f"{text}; {self._last_checkpoint()}", file=sys.stderr, flush=True)
        os._exit(STOPPED_BY_SIGNAL)  # a collective or a write that hangs cannot be left in any other way

    def agreed(self) -> bool:
        """Whether any process was asked, the same on all of them; for the end of a step. All ranks take part."""
        return bool(collectives.max_over_world([int(bool(self._asked))])[0])

    def finish(self, step: int, speaks: bool, continues: bool) -> None:
        """End the run: the checkpoint of `step` is whole. All ranks take part; one of them speaks. `continues`: a run can go
        on from it."""
        if speaks:
            name = self._asked or "a signal to another process"
            after = "the same command continues" if continues else "as weights alone, for --init-from of another --run-dir"
            print(f"stopped by {name}: step_{step} is saved; {after}", file=sys.stderr, flush=True)
        collectives.barrier()  # torchrun ends the others as soon as one has ended
        raise StoppedBySignal("")
