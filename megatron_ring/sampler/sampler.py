"""Batched generation over the live training model with a paged KV cache, under any parallel layout.

Every rank of a data-parallel replica has the same scheduler and sees the same sampled tokens, so they stay equal. Ranks
that share experts (EP) run forward passes together: one without work takes part with padding.

What happens on the host between forward passes may fail on one rank alone. It is then noted, told to the others before the
next forward pass, and raised by all. A rank that fails inside a forward pass ends, and the launcher ends the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import NotFiniteError, RequestError, UserError
from megatron_ring.model.ring_model import RingModel, forward_all_stages
from megatron_ring.model.routes import NotedRoutes, new_routes, routes_as_bytes
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.sampler.attention import PagedLayout
from megatron_ring.sampler.cache import PagedCache, size_for
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.decoding import HORIZON, DecodeLoop
from megatron_ring.sampler.requests import GenerationRequest, Sampled
from megatron_ring.sampler.requests import Sequence as Response
from megatron_ring.sampler.sampling import draw_rows
from megatron_ring.sampler.scheduler import Chunk, Scheduler, Step
from megatron_ring.sampler.stopping import Decode, StopConditions


class Sampler:
    """Draws responses from `model` as it is now. Between calls it keeps nothing but the memory of its cache.

    Args:
        decode: text of token ids; needed for stop strings only.
        note_routes: note the experts of each token for `Completion.routes`.
    """

    def __init__(
        self, model: RingModel, context: ParallelContext, sampling: SamplingConfig, eos_id: int,
        decode: Decode | None = None, note_routes: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.context, self.sampling, self.eos_id = model, context, sampling, eos_id
        self.stopping = StopConditions(sampling, eos_id, decode)
        self.note_routes = note_routes
        self._cache: PagedCache | None = None
        self._loop: DecodeLoop | None = None
        parallel, device = context.config, context.device
        # One pass through a pipeline cannot feed itself; megatron-core's dispatcher waits for the device.
        able = parallel.pipeline == parallel.expert_tensor == 1
        # Exactly, and by Transformer Engine's experts, rows are exchanged, which waits as well. Its tensor-parallel layers
        # have not been tried in a graph.
        theirs = not model.config.ring_parts.experts.exchanges
        able = able and not ((model.config.ring_exact or theirs) and parallel.expert > 1)
        able = able and not (theirs and parallel.tensor > 1)
        self.graphs = able and device.type == "cuda" and sampling.cuda_graphs
        # Without graphs nothing is gained by not looking at each token.
        self.horizon = HORIZON if self.graphs else 1

    def release(self) -> None:
        """Give back the memory of the KV cache, as training wants it."""
        self._cache = self._loop = None

    def weights_changed(self) -> None:
        """The weights have moved: cached keys and values are of another model. Frees them."""
        self.release()

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
        self._settle(self._problem_with(requests))
        scheduler, problem = None, None
        try:
            scheduler = self._scheduler(requests)
        except UserError as error:
            problem = RequestError(str(error))
        self._settle(problem)
        assert scheduler is not None
        if self.context.config.expert > 1 and any(collectives.max_over_world([self._loop is None], self.context.device)):
            self._loop = None  # ranks that share experts capture graphs together, or not at all
        failure: Exception | None = None
        was_training = self.model.training
        self.model.eval()
        try:
            while True:
                go_on, tokens, watched = self._go_on(scheduler, token_budget, counted, failure, on_token is not None)
                if not go_on:
                    break
                # What is not counted is not lost: no need for short steps near the end of such a budget.
                horizon = self.horizon if counted is not None else self._horizon(token_budget, tokens)
                horizon = 1 if watched else horizon
                step = scheduler.plan(horizon) if scheduler.has_work else Step(horizon=horizon)
                sampled = self._run(step) if scheduler.has_work or self.context.config.expert > 1 else []
                try:
                    _check_finite(step, sampled)
                    finished = scheduler.advance(step, sampled)
                    if on_token is not None:
                        for sequence in step.decoding:
                            on_token(sequence.index, sequence.tokens[-1])
                    if on_finished is not None:
                        for sequence in finished:
                            on_finished(sequence.index, sequence.completion(version))
                    if on_progress is not None:
                        on_progress(scheduler.finished)
                except Exception as error:
                    failure = error
        finally:
            self.model.train(was_training)
        self._settle(failure)
        return [sequence.completion(version) for sequence in scheduler.sequences]

    def _problem_with(self, requests: Sequence[GenerationRequest]) -> RequestError | None:
        limit = self.model.ring_config.max_positions
        for request in requests:
            prompt, new = len(request.prompt_tokens), request.max_new_tokens
            if prompt + new > limit:
                return RequestError(
                    f"a prompt of {prompt} tokens and {new} new ones exceed the model's {limit} positions: lower "
                    f"--sampling.max-new-tokens"
                )
            if prompt == 0:
                return RequestError("a prompt without tokens: give each at least one")
            if request.begun.length >= new:
                return RequestError(f"a response of {request.begun.length} tokens is not to have more than {new}")
        return None

    def _scheduler(self, requests: Sequence[GenerationRequest]) -> Scheduler:
        """A scheduler for `requests`, over a cache that is large enough."""
        sampling = self.sampling
        held = 0 if self._cache is None else self._cache.bytes
        size = size_for(requests, self.model, self.context, sampling, held)
        if self._cache is None or not self._cache.serves(size):
            self.release()  # before taking more
            try:
                self._cache = PagedCache(size, self.model, self.context)
            except RuntimeError as error:  # torch's ways to say that there is no memory, of a GPU and of a CPU
                raise UserError(
                    f"no memory for a KV cache of {size.pages * size.page_size:,} tokens: lower --sampling.kv-tokens, "
                    f"--sampling.kv-fraction or --sampling.max-batch"
                ) from error
        return Scheduler(
            requests, pages=size.pages, page_size=size.page_size, max_batch=size.rows,
            prefill_tokens=sampling.prefill_tokens, stop=self.stopping.reason,
            may_stop=self.stopping.may_end,
        )  # fmt: skip

    def _settle(self, failure: Exception | None) -> None:
        """Raise, on every rank, the failure of any."""
        if self.context.world_size == 1:
            if failure is not None:
                raise failure
            return
        mine = None if failure is None else (isinstance(failure, UserError), str(failure), type(failure).__name__)
        for rank, found in enumerate(collectives.gather_over_world(mine)):
            if found is not None:
                by_user, text, kind = found
                if by_user:
                    named: dict[str, type[UserError]] = {each.__name__: each for each in (NotFiniteError, RequestError)}
                    raise named.get(kind, UserError)(f"rank {rank}: {text}") from failure
                raise RuntimeError(f"rank {rank}: {kind}: {text}") from failure

    def _go_on(
        self, scheduler: Scheduler, token_budget: int | None, counted: Callable[[], int] | None,
        failure: Exception | None, watches: bool,
    ) -> tuple[bool, int, bool]:  # fmt: skip
        """Whether there is another step, the same on all ranks that depend on each other; the tokens of these that count
        towards the budget; whether any of these watches each token."""
        tokens = 0
        if self.context.leads_replica:
            tokens = scheduler.generated if counted is None else counted()
        values = [int(failure is not None), int(scheduler.has_work), tokens, int(watches)]
        alone = self.context.config.expert == 1 and token_budget is None
        failures, work, generated, watching = collectives.sum_over_processes(values, self.context.device, of_replica=alone)
        go_on = not failures and work > 0 and (token_budget is None or generated < token_budget)
        return go_on, generated, watching > 0

    def _run(self, step: Step) -> list[Sampled]:
        """`_forward`. The others wait inside the same forward pass and cannot be told of a failure: this process ends, and
        its launcher ends theirs."""
        try:
            return self._forward(step)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"rank {self.context.rank}: sampling ran out of memory: lower --sampling.kv-fraction, "
                f"--sampling.prefill-tokens or --sampling.max-batch"
            ) from error
        except Exception as error:
            raise RuntimeError(f"rank {self.context.rank}: {type(error).__name__}: {error}") from error

    def _horizon(self, token_budget: int | None, generated: int) -> int:
        """Tokens in a row. Near the end of a budget one at a time: it is not overshot by more than a forward pass."""
        most = self.horizon * self.sampling.max_batch * self.context.data_size
        return self.horizon if token_budget is None or generated + most <= token_budget else 1

    def _forward(self, step: Step) -> list[Sampled]:
        """Run a step through all pipeline stages; as many tokens as its horizon says for each sequence that decodes."""
        assert self._cache is not None
        self._cache.prepare(step)
        if not self.graphs and self.horizon == 1:
            return self._forward_eagerly(step.decoding, step.chunks)
        rows, longest, fills, turns = len(step.decoding), 0, bool(step.chunks), step.horizon
        if rows:
            longest = max(sequence.cached for sequence in step.decoding) + turns
        if self.context.config.expert > 1:
            rows, longest, some, less = collectives.max_over_world([rows, longest, fills, -turns], self.context.device)
            fills, turns = some > 0, -less
        sampled = []
        if rows:
            if self._loop is None:
                self._loop = DecodeLoop(self.model, self._cache, self.sampling, self.graphs, self.note_routes)
            sampled = self._loop.run(step.decoding, turns, rows, longest)
        if fills:
            self._forward_eagerly([], step.chunks)
        return sampled

    def _forward_eagerly(self, decoding: list[Response], chunks: list[Chunk]) -> list[Sampled]:
        assert self._cache is not None
        chunks = sorted(chunks, key=lambda chunk: chunk.start > 0)  # stable: `PagedLayout` wants this order
        tokens = [sequence.last_token for sequence in decoding]
        positions = [sequence.cached for sequence in decoding]
        rows = [sequence.row for sequence in decoding]
        for chunk in chunks:
            tokens += chunk.sequence.slice(chunk.start, chunk.count)
            positions += range(chunk.start, chunk.start + chunk.count)
            rows += [chunk.sequence.row] * chunk.count
        ends = [sequence.cached + 1 for sequence in decoding] + [chunk.start + chunk.count for chunk in chunks]
        real, tensor = len(tokens), self.context.config.tensor
        padding = max(1, -(-real // tensor)) * tensor - real  # at least one token, as many for every tensor-parallel rank
        none = [0] * padding
        tokens_t, positions_t, rows_t = self._tensor([tokens + none, positions + none, rows + none]).unbind()
        layout = PagedLayout(positions_t, rows_t, real, ends, [chunk.count for chunk in chunks], self._cache)
        noted = new_routes(self.model, len(tokens_t)) if self.note_routes else None
        if noted is not None:
            layout.routes = NotedRoutes(noted, self.model.route_layers.start)
        sampled = torch.arange(len(decoding), device=self.context.device)
        logits_nv = forward_all_stages(self.model, tokens_t, layout, sampled)
        if not decoding:
            return []
        drawn = torch.empty(4, len(decoding), dtype=torch.float64, device=self.context.device)
        if logits_nv is not None:
            seeds, counts = self._tensor([[s.request.seed for s in decoding], [len(s.tokens) for s in decoding]])
            exact = self.model.config.ring_exact
            drawn = draw_rows(logits_nv, seeds, counts, self.sampling, self.context.tensor_rank, exact)
        columns = collectives.broadcast_from_last_stage(drawn).t().tolist()
        routes = [()] * len(decoding) if noted is None else routes_as_bytes(noted[None, : len(decoding)])
        return [
            Sampled([int(token)], [logprob], [processed], [entropy], chosen)
            for (token, logprob, processed, entropy), chosen in zip(columns, routes, strict=True)
        ]

    def _tensor(self, values: list) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.context.device)


def _check_finite(step: Step, sampled: list[Sampled]) -> None:
    for sequence, drawn in zip(step.decoding, sampled, strict=True):
        if math.isfinite(sum(drawn.logprobs) + sum(drawn.entropies)):
            continue
        wrong = [not math.isfinite(a + b) for a, b in zip(drawn.logprobs, drawn.entropies, strict=True)].index(True)
        raise NotFiniteError(
            f"response {sequence.index}, token {len(sequence.tokens) + wrong}: the model's logits are not finite: its "
            f"weights are broken, go back to an earlier checkpoint"
        )
