"""The sampler as an engine: requests come, are cancelled and finish while others decode.

    engine = sampler.engine()                        # on every rank; memory for requests that are not known yet
    if engine.leads:                                 # rank 0 of each data-parallel replica brings its requests
        first = engine.add(GenerationRequest(prompt, seed=1, max_new_tokens=256))
        greedy = RequestSampling(temperature=0.0, stop_strings=("</answer>",))
        engine.add(GenerationRequest(other, seed=2, max_new_tokens=64, sampling=greedy, columns=frozenset()))
        engine.close()                               # nothing more will come
    while not (report := engine.step()).closed:      # on every rank
        for number, sampled in report.tokens.items():    # new tokens and their numbers, by request
            stream(number, sampled.tokens)
        for number, completion in report.finished.items():
            answer(number, completion)

Who calls what: `Sampler.engine` and `step` are called by every rank, `add`, `cancel` and `close` by the leader of a replica
(`leads`: tensor-parallel rank 0 of the first pipeline stage). The others learn of it at the next step, which waits for the
leader. Replicas step independently of each other, unless they share experts (EP): then all ranks step together, and one
without work takes part. Every rank of a replica gets the same reports.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import RequestError
from megatron_ring.sampler.cache import CacheSize, check_fits
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.edge import News, StepEdge, Tally
from megatron_ring.sampler.flights import FLIGHT, Flights, StepReport
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.runner import ModelRunner
from megatron_ring.sampler.scheduler import Scheduler
from megatron_ring.sampler.step import Step, StepShape
from megatron_ring.sampler.stopping import Decode, StopConditions


@dataclass(frozen=True)
class TokenBudget:
    """The engine closes as soon as all replicas have sampled `limit` tokens.

    Attributes:
        counted: this replica's tokens that count, asked before each step (None: all).
    """

    limit: int
    counted: Callable[[], int] | None = None


class Engine:
    """Answers requests as they come, each as if it were alone: see the module. `Sampler.engine` makes one.

    Args:
        size: of the cache.
        version: of the weights, for `Completion.versions`. It may be set between two steps.

    Attributes:
        tells_tokens: reports hold the tokens of unfinished requests. It costs the host a microsecond for each of them.
        launching: a context in which the device is asked for a step.

    Raises:
        UserError: there is no memory for the cache, or no tokenizer for the stop strings of the settings.
    """

    def __init__(
        self, runner: ModelRunner, size: CacheSize, eos_id: int, decode: Decode | None, edge: StepEdge, *,
        version: int = 0, budget: TokenBudget | None = None,
    ) -> None:  # fmt: skip
        self.runner, self.size, self.budget = runner, size, budget
        self.sampling: SamplingConfig = runner.sampling
        self.context, self.edge, self._eos_id, self._decode = runner.context, edge, eos_id, decode
        usual = StopConditions(self.sampling, eos_id, decode)
        self.scheduler = Scheduler(
            pages=size.pages, page_size=size.page_size, max_batch=size.rows, prefill_tokens=self.sampling.prefill_tokens,
            stop=lambda sequence: (sequence.stops or usual).reason(sequence),
            may_stop=lambda sequence, tokens: (sequence.stops or usual).may_end(sequence, tokens), version=version,
        )  # fmt: skip
        self.flights = Flights(self.scheduler, self.fail)
        runner.open(size)
        self._numbers = itertools.count()
        self._inbox: deque[tuple[int, GenerationRequest | None]] = deque()  # None: cancelled
        self._door = threading.Lock()  # what `add` lets in is in the inbox before `close` takes effect
        self._failure: Exception | None = None
        self._closing = self.closed = False
        self._calm = 0  # steps since something came
        self.tells_tokens = True
        self.launching: AbstractContextManager[None] = nullcontext()

    @property
    def leads(self) -> bool:
        """Whether this rank brings the requests of its replica."""
        return self.context.leads_replica

    @property
    def has_work(self) -> bool:
        """Whether a request of this replica is not finished, as of the last step."""
        return self.scheduler.has_work or self.flights.has_news

    @property
    def arrived(self) -> int:
        """Requests and cancellations that the next step takes."""
        return len(self._inbox)

    def add(self, request: GenerationRequest) -> int:
        """Take a request, and give it a number. Older requests go first. Another thread than that of `step` may call it.

        Raises:
            RequestError: it cannot be served. Nothing else is touched by it.
            UserError: it has stop strings, and there is no tokenizer.
        """
        if not self.leads:
            raise RuntimeError("only the leader of a replica adds requests")
        self.check(request)
        with self._door:
            if self._closing:
                raise RuntimeError("the engine is closed")
            number = next(self._numbers)
            self._inbox.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Give up a request. Its memory is free from the next step on, which says nothing more of it. One that has finished
        is left alone."""
        if not self.leads:
            raise RuntimeError("only the leader of a replica cancels requests")
        self._inbox.append((number, None))

    def close(self) -> None:
        """Nothing more will come: steps go on until all is answered. Another thread than that of `step` may call it."""
        with self._door:
            self._closing = True

    @property
    def failure(self) -> Exception | None:
        """What `fail` was told of first."""
        return self._failure

    def fail(self, error: Exception) -> None:
        """Something failed on this rank between two steps: the next one raises it on every rank."""
        self._failure = self._failure or error

    def admit(self, requests: list[GenerationRequest]) -> None:
        """Take requests that every rank of the replica brings, numbered from 0: `add` without telling."""
        for request in requests:
            self._admit(next(self._numbers), request)

    def weights_changed(self, version: int) -> None:
        """The weights have moved: what is begun goes on under the new ones, its keys and values are computed anew. All ranks
        of the replica call it, between the same two steps."""
        self.flights.land_all(self.tells_tokens)  # sampled under the old ones
        self.runner.follow_weights()
        self.scheduler.restart()
        self.scheduler.version = version

    def partial(self, number: int) -> Completion:
        """A request whose end no step has reported, as far as it came. All ranks of the replica call it."""
        self.flights.land_all(self.tells_tokens)
        return self.flights.finished(number) or self.scheduler.sequences[number].completion()

    @torch.no_grad()
    def step(self, watched: bool = False, meanwhile: Callable[[], None] | None = None) -> StepReport:
        """Take what came, launch a forward pass, or some in a row, and say what has landed: what it brought, or the step
        before. Where that is still to come the report is empty.

        Args:
            watched: each token is wanted at once: no passes in a row.
            meanwhile: called, perhaps, when the device has got its work and before it is waited for. Raises nothing.

        Raises:
            UserError, RuntimeError: on every rank that steps with this one: one of them failed, and why. The engine is of no
                use any more.
        """
        opened = self.leads and not self._closing  # read before the inbox: another thread may add and close in between
        news = self._drain()
        agreed = self.edge.agree(self._tally(news, opened, watched))
        if agreed.failed:
            self.closed = True
            self.edge.settle(self._failure)
        self._calm = 0 if agreed.news else self._calm + 1
        if agreed.news:
            self._take(self.edge.share_news(news))
        spent = self.budget is not None and agreed.tokens >= self.budget.limit
        if not agreed.work or (spent and not agreed.flights):
            self.flights.drop()
            self.closed = spent or not agreed.open
            return StepReport(closed=self.closed, idle=not agreed.work)
        model = self.runner.model
        was_training = model.training
        if was_training:
            model.eval()
        try:
            return self._step(agreed, spent, meanwhile)
        finally:
            if was_training:
                model.train()

    def _step(self, agreed: Tally, spent: bool, meanwhile: Callable[[], None] | None) -> StepReport:
        """Launch a step, and land the oldest one in the air: the step before, where this one may fly. Which passes ranks run
        here depends on what they have agreed on alone."""
        scheduler, runner, flights = self.scheduler, self.runner, self.flights
        if runner.cache is None:  # it was given back meanwhile
            flights.land_all(self.tells_tokens)
            scheduler.restart()
            runner.follow_weights()
            runner.open(self.size)
        flies, horizon = self._manner(agreed)
        if spent or (agreed.flights and not flies):
            if meanwhile is not None:
                meanwhile()
            if len(flights):
                flights.land(self.tells_tokens)
            return flights.report()
        busy = scheduler.has_work
        if not busy and not self.edge.shares_experts:
            flights.drop()
            return flights.report()
        step = scheduler.plan(horizon, agreed.flights > 0) if busy else Step(horizon=horizon)
        shape = self.edge.share_shape(step) if runner.in_rows else StepShape.of(step)
        with nullcontext() if shape.scored else self.launching:  # scores are waited for
            flights.launched(step, shape.turns, runner.launch(step, shape, meanwhile))
        if len(flights) > 1 or not flies or shape.scored:
            flights.land(self.tells_tokens)
        return flights.report()

    def _manner(self, agreed: Tally) -> tuple[bool, int]:
        """Whether the next step flies, and how many tokens it has in a row."""
        if agreed.watched:
            return False, 1
        horizon = self.runner.horizon
        if agreed.open and self.budget is None and 2 * len(self.scheduler.running) <= self.size.rows:
            # More may be on its way, and would wait for few rows: a pass of these takes nearly as long as one of many.
            horizon = min(horizon, 1 << min(self._calm, 8))
        flight = min(horizon, FLIGHT)
        if not agreed.lands and not self._near_the_end(agreed, flight):
            return True, flight
        return False, 1 if self._near_the_end(agreed, horizon) else horizon

    def _near_the_end(self, agreed: Tally, horizon: int) -> bool:
        """Whether so many tokens in a row might overshoot a budget. Near its end it is one at a time: it is not overshot by
        more than a forward pass. What is not counted is not lost: no need for that near the end of a budget of others."""
        if self.budget is None or self.budget.counted is not None:
            return False
        most = horizon * self.sampling.most_rows(self.context.device.type) * self.context.data_size
        return agreed.tokens + agreed.flying + most > self.budget.limit

    def _tally(self, news: News, opened: bool, watched: bool) -> Tally:
        tokens = 0
        if self.leads:
            counted = None if self.budget is None else self.budget.counted
            tokens = self.scheduler.generated if counted is None else counted()
        flights, work = self.flights, self.has_work or bool(news.requests)
        able = self.runner.flies and self.runner.in_rows and self.scheduler.may_fly()
        return Tally(
            failed=int(self._failure is not None), work=int(work), open=int(opened),
            news=len(news.requests) + len(news.cancelled), tokens=tokens, watched=int(watched),
            lands=int(not able), flights=len(flights), flying=flights.tokens if self.leads else 0,
        )  # fmt: skip

    def _drain(self) -> News:
        """What came since the last step. A request that was cancelled before it was told is not told."""
        requests: dict[int, GenerationRequest] = {}
        cancelled = []
        for _ in range(len(self._inbox)):
            number, request = self._inbox.popleft()
            if request is not None:
                requests[number] = request
            elif requests.pop(number, None) is None:
                cancelled.append(number)
        return News(list(requests.items()), cancelled)

    def _take(self, news: News) -> None:
        for number in news.cancelled:
            self.scheduler.cancel(number)
            self.flights.forget(number)
        for number, request in news.requests:
            self._admit(number, request)

    def _admit(self, number: int, request: GenerationRequest) -> None:
        stops = None if request.sampling is None else StopConditions(request.sampling, self._eos_id, self._decode)
        self.scheduler.add(number, request, request.sampling or self.sampling, stops)

    def check(self, request: GenerationRequest) -> None:
        """Raise what `add` would raise."""
        request.check(self.runner.model.ring_config.max_positions)
        check_fits(request, self.size)
        tokens, size = request.prompt_tokens, self.runner.model.ring_config.vocab_size
        if min(tokens) < 0 or max(tokens) >= size:
            outside = next(token for token in tokens if not 0 <= token < size)
            raise RequestError(f"token {outside} of the prompt is outside the model's vocabulary")
        if request.sampling is not None:
            StopConditions(request.sampling, self._eos_id, self._decode)
