"""Flights: steps that the device has been asked for and whose tokens the host has not seen.

While one is in the air the next is planned and launched over the same sequences, then the first is landed: its tokens are
fetched and looked at. So the device does not wait for the host. Two are in the air at most. A sequence that ends in the
first flies in the second to no effect, for FLIGHT tokens at most.

Everything is in the order of launches: what is filled or copied is there for the flights behind it, and pages that are given
back may be given to others at once, as what these write comes behind the last flight of their former owner.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.requests import Sampled
from megatron_ring.sampler.runner import Land
from megatron_ring.sampler.scheduler import Scheduler
from megatron_ring.sampler.scores import TokenScore
from megatron_ring.sampler.step import Step, check_finite

FLIGHT = 8  # tokens in a row where two flights may be in the air


@dataclass(frozen=True)
class StepReport:
    """What a step has brought to this replica, by number of the request.

    Attributes:
        tokens: those that the host has seen in the step.
        prompt_scores: of requests that ask for them, scores of prompt tokens by position. The same may come twice.
        finished: the requests that end with it, whole.
        closed: nothing is left to do: no step was taken, and none will be.
        idle: no rank that steps with this one has work; no step was taken.
    """

    tokens: dict[int, Sampled] = field(default_factory=dict)
    finished: dict[int, Completion] = field(default_factory=dict)
    closed: bool = False
    idle: bool = False
    prompt_scores: dict[int, dict[int, TokenScore]] = field(default_factory=dict)


@dataclass(frozen=True)
class Flight:
    """A step in the air: `turns` tokens of each sequence that decodes, under `version` of the weights."""

    step: Step
    turns: int
    version: int
    land: Land


class Flights:
    """What is in the air, oldest first, and what has landed and was not reported.

    Args:
        fail: told of what is wrong with what has landed.
    """

    def __init__(self, scheduler: Scheduler, fail: Callable[[Exception], None]) -> None:
        self._scheduler, self._fail = scheduler, fail
        self._air: deque[Flight] = deque()
        self._report = StepReport()

    def __len__(self) -> int:
        return len(self._air)

    @property
    def tokens(self) -> int:
        """That they may bring."""
        return sum(flight.turns * len(flight.step.decoding) for flight in self._air)

    @property
    def has_news(self) -> bool:
        """Whether something has landed that was not reported."""
        return bool(self._report.tokens or self._report.finished)

    def launched(self, step: Step, turns: int, land: Land) -> None:
        """One more is in the air."""
        self._air.append(Flight(step, turns, self._scheduler.version, land))
        self._scheduler.launched(step, turns)

    def drop(self) -> None:
        """Forget what is in the air: none of its sequences is there any more."""
        self._air.clear()

    def land(self, tells_tokens: bool) -> None:
        """The oldest: take what it brings of requests that are there still."""
        flight, scheduler, report = self._air.popleft(), self._scheduler, self._report
        sampled, prompt_scores = flight.land()
        pairs = zip(flight.step.decoding, sampled, strict=True)
        drawn = [pair for pair in pairs if scheduler.sequences.get(pair[0].index) is pair[0]]
        before = [len(sequence.tokens) for sequence, _ in drawn] if tells_tokens else []
        try:
            check_finite(drawn)
            done = scheduler.landed(drawn, flight.version)
        except Exception as error:
            self._fail(error)
            return
        if tells_tokens:
            for (sequence, found), count in zip(drawn, before, strict=True):
                new = found.first(len(sequence.tokens) - count)
                earlier = report.tokens.get(sequence.index)
                report.tokens[sequence.index] = new if earlier is None else earlier.joined(new)
        report.finished.update((sequence.index, sequence.completion()) for sequence in done)
        report.prompt_scores.update(prompt_scores)

    def land_all(self, tells_tokens: bool) -> None:
        """What is in the air, before what comes next could not go on from it."""
        while self._air:
            self.land(tells_tokens)

    def forget(self, number: int) -> None:
        """Report nothing of a request that is cancelled."""
        self._report.tokens.pop(number, None)
        self._report.finished.pop(number, None)

    def finished(self, number: int) -> Completion | None:
        """A request that is whole and was not reported."""
        return self._report.finished.get(number)

    def report(self) -> StepReport:
        """What has landed since the last."""
        report, self._report = self._report, StepReport()
        return report
