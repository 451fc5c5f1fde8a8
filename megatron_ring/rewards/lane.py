"""One lane of the reward pool: a worker and the items that it is given one by one, with further tries where due."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import NamedTuple

from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import MACHINE_FAILURE, Reward, ScoreRequest
from megatron_ring.rewards.reasons import printable_line
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.retry import turn
from megatron_ring.rewards.worker_process import WorkerDied, WorkerProcess, WorkerTimeout

_ATTEMPTS = 2  # for an item whose worker crashes
# Seconds before each further try where the machine failed: the worker was killed, as the kernel does for want of memory, or
# could not run a program; and where a worker could not even be started, which is no item's doing.
_PAUSES = (0.2, 1.0, 3.0)
_START_PAUSES = (0.2, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
# So many items may stay without a verdict because of the machine, and then this share of all; more end the run.
_UNSCORED, _UNSCORED_SHARE = 16, 0.05
_MEND = "free memory, processes or disk, or use fewer --rewards.workers"


class Item(NamedTuple):
    """What is to be scored within so many seconds; without a request, a worker that is to be up."""

    request: ScoreRequest | None
    time_limit: float


class Tally:
    """How many items have been scored, and how many are without a verdict. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scored = 0
        self.unscored = 0

    def scored(self) -> None:
        with self._lock:
            self._scored += 1

    def without_verdict(self, problem: str) -> Reward | UserError:
        """The outcome of an item for which the machine failed every time: 0 and counted, or an error past the bound."""
        problem = printable_line(problem)
        with self._lock:
            self._scored += 1
            self.unscored += 1
            if self.unscored > max(_UNSCORED, _UNSCORED_SHARE * self._scored):
                said = f"rewards: {self.unscored} of {self._scored} responses are without a verdict: the machine failed"
                return UserError(f"{said} (the last time: {problem}): {_MEND}")
        return Reward(0.0, f"no verdict, the machine failed: {problem}", {MACHINE_FAILURE: problem})


class _NotStarted(Exception):
    """There is no worker, because of the machine."""


class Lane:
    """Used by one thread.

    Args:
        start: a new worker, not ready yet; raises OSError where the machine has none, CancelledError once the pool closes.
        end: ends one.
        closing: set once the pool closes.
        worked: set once a worker of this kind was up; all lanes of the kind share it.
    """

    def __init__(
        self,
        start: Callable[[], WorkerProcess],
        end: Callable[[WorkerProcess], None],
        closing: threading.Event,
        worked: threading.Event,
        tally: Tally,
    ) -> None:
        self._start, self._end, self._closing, self._worked, self._tally = start, end, closing, worked, tally
        self._worker: WorkerProcess | None = None

    def score(self, item: Item) -> Reward | Exception:
        """The item's reward, or what ends the run."""
        crashes, starved = 0, False
        pauses, start_pauses = iter(_PAUSES), iter(_START_PAUSES)
        while not self._closing.is_set():
            try:
                with turn(self._closing.wait) if starved else contextlib.nullcontext():
                    reward = self._ask(item)
            except _NotStarted as error:
                if self._goes_on(start_pauses):
                    continue
                if self._closing.is_set():
                    break
                if item.request is None:
                    return UserError(f"rewards: no worker can be started, the machine fails ({error}): {_MEND}")
                return self._tally.without_verdict(str(error))
            except WorkerTimeout:
                again = not starved and self._worker is not None and self._worker.starved(item.time_limit)
                self.discard()
                if again:
                    starved = True
                    continue
                reward = Reward(0.0, f"time limit of {item.time_limit:g} s exceeded")
            except (WorkerDied, MachineFailure) as error:
                self.discard()
                killed = not isinstance(error, WorkerDied) or error.killed
                crashes += not killed
                if self._goes_on(pauses) if killed else crashes < _ATTEMPTS:
                    continue
                if self._closing.is_set():  # it was ended by that
                    break
                if killed:
                    return self._tally.without_verdict(str(error))
                reward = Reward(0.0, f"the verifier's process died: {error}")
            except CancelledError as error:
                return error
            except Exception as error:  # such as `UserError`: it ends the run, and is raised where the reward is waited for
                self.discard()
                return error
            if item.request is not None:
                self._tally.scored()
            return reward
        return CancelledError()

    def discard(self) -> None:
        """End the worker. The next item gets a new one."""
        if self._worker is not None:
            self._end(self._worker)
            self._worker = None

    def _goes_on(self, pauses: Iterator[float]) -> bool:
        """Pause before a further try; False where there is none."""
        pause = next(pauses, None)
        return pause is not None and not self._closing.wait(pause)

    def _ask(self, item: Item) -> Reward:
        if self._worker is None or self._worker.process.poll() is not None:
            self.discard()
            self._await_worker()
        assert self._worker is not None
        if item.request is None:
            return Reward(0.0, "ready")
        reward, retire = self._worker.ask(item.request, item.time_limit)
        if retire:
            self.discard()
        return reward

    def _await_worker(self) -> None:
        """Start a worker and wait for it.

        Raises:
            _NotStarted: the machine has none for now.
            UserError: it cannot work here at all.
        """
        try:
            self._worker = self._start()
            self._worker.await_ready()
        except (WorkerDied, MachineFailure, OSError, MemoryError) as error:
            self.discard()
            raise _NotStarted(printable_line(f"{type(error).__name__}: {error}")) from None
        except UserError as error:
            self.discard()
            if self._worked.is_set():  # others like it did start here
                raise _NotStarted(printable_line(str(error))) from None
            raise
        self._worked.set()
