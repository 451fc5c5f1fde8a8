"""The engine of one data-parallel replica, as the server sees it: requests by the server's numbers, updates in return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from megatron_ring.errors import UserError
from megatron_ring.sampler.engine import Engine
from megatron_ring.sampler.flights import StepReport
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.scores import TokenScore

QUIET = 0.003  # seconds without a request that end the gathering of a burst
BUSY_SECONDS = 0.01  # what few rows' pass of a large model takes
BURST = 4  # requests in that time


class Update(NamedTuple):
    """What a step has brought for one request.

    Attributes:
        number: the server's.
        tokens, logprobs: sampled in the step; log-probabilities (nats) where the request asks for that column.
        scores: of these tokens, where it asks for scores.
        prompt_scores: of prompt tokens, by position.
        reason: what has ended it, as `Completion.finish_reason`.
        refused: why it cannot be served.
    """

    number: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: dict[int, TokenScore] | None = None
    reason: str | None = None
    refused: str | None = None

    def joined(self, later: Update) -> Update:
        """This and what came after it, as one."""
        return later._replace(
            tokens=self.tokens + later.tokens, logprobs=self.logprobs + later.logprobs, scores=self.scores + later.scores,
            prompt_scores=(self.prompt_scores or {}) | (later.prompt_scores or {}),
        )  # fmt: skip


class Replica:
    """On the leader of a replica. `take`, `send_taken` and `wait` belong to the thread that steps, the others to any thread.

    Args:
        send: where updates go.
    """

    def __init__(self, engine: Engine, send: Callable[[list[Update]], None]) -> None:
        self.engine, self._send = engine, send
        self._ours: dict[int, tuple[int, bool]] = {}  # engine's number -> server's number, log-probabilities wanted
        self._theirs: dict[int, int] = {}
        self._lock = threading.Lock()  # a request may be answered before `add` has noted its number
        self._bell = threading.Event()  # there is work, here or for all that share experts
        self._more = threading.Event()  # something comes, or has come
        self._taken: list[Update] = []
        self._ends = False

    def add(self, number: int, request: GenerationRequest) -> None:
        """Take a request; a refusal comes as an update."""
        try:
            with self._lock:
                theirs = self.engine.add(request)
                wanted = request.columns is None or "logprobs" in request.columns
                self._ours[theirs], self._theirs[number] = (number, wanted), theirs
        except (UserError, RuntimeError) as error:  # closed meanwhile
            self._send([Update(number, refused=str(error))])
        self._more.set()
        self._bell.set()

    def expect(self) -> None:
        """A client begins something. Nobody steps for that yet: replicas that share experts would not."""
        self._more.set()

    @property
    def expecting(self) -> bool:
        """Whether something has come since the last gathering."""
        return self._more.is_set()

    def cancel(self, number: int) -> None:
        """Forget a request."""
        with self._lock:
            theirs = self._theirs.pop(number, None)
            if theirs is not None:
                del self._ours[theirs]
                self.engine.cancel(theirs)
        self._bell.set()

    def wake(self) -> None:
        """Another replica has work: take part in its steps."""
        self._bell.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._ends = True
        self._more.set()
        self.engine.close()
        self._bell.set()

    def fail(self, error: Exception) -> None:
        """End all that step with this replica."""
        self._ends = True
        self._more.set()
        self.engine.fail(error)
        self._bell.set()

    def wait(self, seconds: float) -> bool:
        """Until there is work, or so long; whether there is."""
        came = self._bell.wait(seconds)
        self._bell.clear()
        return came

    def gather(self, seconds: float, busy: bool = False) -> None:
        """Wait while more comes, so long at most, and not beyond a full batch or the end. The thread that takes requests has
        the interpreter to itself meanwhile.

        Args:
            busy: the device has work, for about BUSY_SECONDS at least: beyond that only for a burst.
        """
        began = time.monotonic()
        while self.engine.arrived < self.engine.size.rows and not self._ends:
            spent = time.monotonic() - began
            if spent >= seconds or (busy and spent >= BUSY_SECONDS and self.engine.arrived < BURST):
                return
            if not self._more.wait(min(QUIET, seconds - spent)):
                return
            self._more.clear()

    def take(self, report: StepReport) -> None:
        """Hold what a step has brought, for `send_taken`."""
        with self._lock:
            for theirs in report.tokens.keys() | report.prompt_scores.keys():
                if theirs not in self._ours:
                    continue  # cancelled meanwhile
                number, wanted = self._ours[theirs]
                update = Update(number, prompt_scores=report.prompt_scores.get(theirs))
                sampled, finished = report.tokens.get(theirs), report.finished.get(theirs)
                if sampled is not None:
                    logprobs = tuple(sampled.of("logprobs")) if wanted else ()
                    update = update._replace(tokens=tuple(sampled.tokens), logprobs=logprobs, scores=sampled.scores)
                if finished is not None:
                    update = update._replace(reason=finished.finish_reason)
                    del self._ours[theirs], self._theirs[number]
                self._taken.append(update)

    def send_taken(self) -> None:
        """Send what was taken since the last time."""
        taken, self._taken = self._taken, []
        if taken:
            self._send(taken)
