"""Batched generation over the live training model with a paged KV cache, under any parallel layout."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from megatron_ring.config.declarations import CACHE_SLACK
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import RequestError, UserError
from megatron_ring.garbage import collector_paused, kept_what_is_there
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.cache import CacheSize, size_for, size_for_any
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.edge import StepEdge
from megatron_ring.sampler.engine import Engine, TokenBudget
from megatron_ring.sampler.flights import StepReport
from megatron_ring.sampler.pages import pages_for
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.runner import ModelRunner
from megatron_ring.sampler.stopping import Decode, StopConditions


class Sampler:
    """Draws responses from `model` as it is now: all at once by `generate`, as they come by `engine`. Between calls it keeps
    nothing but the memory of its cache.

    Args:
        sampling: of requests that do not bring settings of their own.
        decode: text of token ids; needed for stop strings only.
        note_routes: note the experts of each token for `Completion.routes`.
        keeps_cache: keep the memory of the KV cache, and the CUDA graphs that name it, where nothing is sampled for a while.
    """

    def __init__(
        self, model: RingModel, context: ParallelContext, sampling: SamplingConfig, eos_id: int,
        decode: Decode | None = None, note_routes: bool = False, keeps_cache: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.context, self.sampling, self.eos_id, self.decode = model, context, sampling, eos_id, decode
        StopConditions(sampling, eos_id, decode)  # refuses what needs a tokenizer before anything is sampled
        self.runner = ModelRunner(model, context, sampling, note_routes, eos_id)
        self.keeps_cache = keeps_cache
        self._engine: weakref.ref[Engine] | None = None

    @property
    def graphs(self) -> bool:
        """Whether decoding runs as CUDA graphs."""
        return self.runner.graphs

    @property
    def horizon(self) -> int:
        """Tokens decoded in a row, at most."""
        return self.runner.horizon

    @horizon.setter
    def horizon(self, tokens: int) -> None:
        self.runner.horizon = tokens

    def release(self) -> None:
        """Give back the memory of the KV cache and of weights in FP8, as training wants it. An open engine takes it again at
        its next step, and computes anew what was in it."""
        self.runner.release()

    def rest(self) -> None:
        """Nothing is sampled for a while: `release`, unless the memory is to be kept."""
        if not self.keeps_cache:
            self.release()

    def weights_changed(self) -> None:
        """The weights have moved: cached keys and values are of another model, and no later call uses them."""
        open_one = None if self._engine is None else self._engine()
        if open_one is not None and not open_one.closed:
            self.release()  # what it has begun is computed anew
        self.rest()

    def engine(self, *, version: int = 0) -> Engine:
        """An engine for requests that are not known yet, over as large a cache as there may be. All ranks of the run call it
        together. There may be one at a time.

        Args:
            version: of the weights, for `Completion.versions`.

        Raises:
            UserError: on every rank: there is no memory for the cache.
        """
        size = partial(size_for_any, self.model, self.context, self.sampling)
        return self._open(StepEdge(self.context), size, version, None)

    @torch.no_grad()
    def generate(
        self,
        requests: Sequence[GenerationRequest],
        *,
        version: int = 0,
        token_budget: int | None = None,
        counted: Callable[[], int] | None = None,
        on_progress: Callable[[int], None] | None = None,
        on_finished: Callable[[int, Completion], None] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Complete this data-parallel replica's requests, in order. All ranks of the run call it together.

        Args:
            requests: may be empty on some replicas. All ranks of one replica must bring the same ones. Older (earlier) ones
                go first.
            version: of the weights, for `Completion.versions`.
            token_budget: stop as soon as all replicas together have sampled so many tokens in this call; what is not
                finished then has no finish reason, and `request.continued` takes it up in a later call.
            counted: this replica's tokens that count towards the budget, asked before each step (default: all).
            on_progress: told the number of finished requests after each step.
            on_finished: given each completion when it is done, with its place among the requests.
            on_token: given each sampled token, with the place of its request.

        Raises:
            RequestError: on every rank, before anything is sampled: a request that cannot be served.
            UserError, RuntimeError: on every rank: one rank failed, and why.
        """
        budget = None if token_budget is None else TokenBudget(token_budget, counted)
        edge = StepEdge(self.context, with_others=budget is not None, tells_others=True)
        edge.settle(self._problem_with(requests))
        size = partial(size_for, requests, self.model, self.context, self.sampling)
        engine = self._open(edge, size, version, budget)
        engine.scheduler.patience.steps = self.runner.patience
        with collector_paused():
            engine.admit(list(requests))
        engine.close()
        engine.tells_tokens = on_token is not None
        told = _Told(engine, on_progress, on_finished, on_token)
        was_training = self.model.training
        self.model.eval()
        try:
            # What a step brought is told while the device is at the next one, unless that depends on who was told.
            later = None if budget is not None else told.tell
            with kept_what_is_there(looks=False):
                while not (report := engine.step(on_token is not None, later)).closed:
                    told.tell()
                    told.take(report)
                    if budget is not None or on_token is not None:
                        told.tell()
            told.tell()
        finally:
            self.model.train(was_training)
            engine.closed = True
        edge.settle(engine.failure)
        return [told.completions.get(place) or engine.partial(place) for place in range(len(requests))]

    def _problem_with(self, requests: Sequence[GenerationRequest]) -> UserError | None:
        try:
            for request in requests:
                request.check(self.model.ring_config.max_positions)
                if request.sampling is not None:
                    StopConditions(request.sampling, self.eos_id, self.decode)
        except UserError as error:
            return error
        return None

    def _open(self, edge: StepEdge, size: Callable[[int], CacheSize], version: int, budget: TokenBudget | None) -> Engine:
        """An engine, on every rank or on none. `size` is told the bytes of the cache that makes way for another."""
        open_one = None if self._engine is None else self._engine()
        if open_one is not None and not open_one.closed:
            raise RuntimeError("this sampler has an engine open: close it, and step until it is")
        engine, problem = None, None
        try:
            self.runner.follow_weights()
            cache = size(self.runner.cache_bytes)
            if self.keeps_cache and not self.runner.serves(cache):
                cache = _roomier(cache, pages_for(self.model.ring_config.max_positions, cache.page_size))
            engine = Engine(self.runner, cache, self.eos_id, self.decode, edge, version=version, budget=budget)
        except UserError as error:
            problem = RequestError(str(error))
        edge.settle(problem)
        assert engine is not None
        if edge.any_shares(not self.runner.has_loop):
            self.runner.drop_loop()  # ranks that share experts capture graphs together, or not at all
        self._engine = weakref.ref(engine)
        return engine


class _Told:
    """Who is told of what steps brought. What they raise the engine is told, which fails on every rank."""

    def __init__(
        self, engine: Engine, on_progress: Callable[[int], None] | None,
        on_finished: Callable[[int, Completion], None] | None, on_token: Callable[[int, int], None] | None,
    ) -> None:  # fmt: skip
        self.completions: dict[int, Completion] = {}
        self._engine, self._progress, self._finished, self._token = engine, on_progress, on_finished, on_token
        self._report: StepReport | None = None

    def take(self, report: StepReport) -> None:
        self.completions |= report.finished
        self._report = report

    def tell(self) -> None:
        """Of the report taken last, once."""
        report, self._report = self._report, None
        if report is None:
            return
        try:
            if self._token is not None:
                for place, sampled in report.tokens.items():
                    for token in sampled.tokens:
                        self._token(place, token)
            if self._finished is not None:
                for place, completion in report.finished.items():
                    self._finished(place, completion)
            if self._progress is not None:
                self._progress(len(self.completions))
        except Exception as error:
            self._engine.fail(error)


def _roomier(size: CacheSize, columns: int) -> CacheSize:
    """A cache that serves calls of somewhat more tokens, and of any lengths, too."""
    return replace(size, pages=int(size.pages * CACHE_SLACK), columns=columns)
