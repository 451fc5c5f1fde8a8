"""Runs the steps of the sampler: forward passes of the live model over the paged cache, and the draw of a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import MemoryRanOutError, UserError
from megatron_ring.model.narrow import NarrowExperts
from megatron_ring.model.ring_model import RingModel, hidden_of_last_stage
from megatron_ring.model.routes import NotedRoutes, new_routes, routes_as_bytes
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import capability, synchronize, upload
from megatron_ring.sampler.attention import PagedLayout
from megatron_ring.sampler.cache import CacheSize, PagedCache
from megatron_ring.sampler.columns import DRAWN, fill_columns
from megatron_ring.sampler.decoding import HORIZON, DecodeLoop, GraphKey
from megatron_ring.sampler.requests import Sampled
from megatron_ring.sampler.requests import Sequence as Response
from megatron_ring.sampler.row_settings import RowSettings
from megatron_ring.sampler.sampling import draw_rows
from megatron_ring.sampler.scoring import PromptScores, score_prompts, score_sampled
from megatron_ring.sampler.step import Chunk, Step, StepShape

PATIENCE = 4  # steps of a small model that prompts wait for others to begin with, where all are there from the start
SMALL_LAYER = 256 << 20  # bytes of weights that a GPU reads several times while the host launches a fill of the layer
Land = Callable[[], tuple[list[Sampled], PromptScores]]
"""Waits for what a step brings: tokens for each sequence that decodes, and scores of prompts."""


class ModelRunner:
    """The model with the memory of a cache. Between two steps nothing is kept that `release` does not give back.

    Attributes:
        graphs: whether decoding runs as CUDA graphs.
        horizon: tokens decoded in a row, at most.
        overlaps: whether shared experts run beside the routed ones where tokens are decoded in rows. Graphs that there are
            stay as they were captured.
        early: whether kernels are launched while the ones before still run; the same of graphs.
        flies: whether a step may be launched before the last one has landed (`sampler.flights`), where tokens are decoded in
            a row. It may be changed between two steps.
        narrow: the experts' weights in FP8, where `--sampling.weights` wants them and something was sampled since `release`.
    """

    def __init__(
        self, model: RingModel, context: ParallelContext, sampling: SamplingConfig, note_routes: bool, eos_id: int = -1
    ) -> None:
        self.model, self.context, self.sampling, self.note_routes = model, context, sampling, note_routes
        self._eos_id = eos_id
        self.cache: PagedCache | None = None
        self.narrow: NarrowExperts | None = None
        shape = model.ring_config
        sampling.check_weights(model.config.ring_exact, shape.first_dense_layers < shape.num_layers)
        sampling.check_device(capability(context.device))
        self._loop: DecodeLoop | None = None
        parallel = context.config
        # One pass through a pipeline cannot feed itself; megatron-core's dispatcher waits for the device.
        able = parallel.pipeline == parallel.expert_tensor == 1
        # Exactly, and by Transformer Engine's experts, rows are exchanged, which waits as well. Its tensor-parallel layers
        # have not been tried in a graph.
        theirs = not model.config.ring_parts.experts.exchanges
        able = able and not ((model.config.ring_exact or theirs) and parallel.expert > 1)
        able = able and not (theirs and parallel.tensor > 1)
        self.graphs = able and context.device.type == "cuda" and sampling.cuda_graphs
        # Without graphs nothing is gained by not looking at each token.
        self.horizon, self.flies = HORIZON if self.graphs else 1, self.graphs
        self.overlaps = self.early = True

    @property
    def patience(self) -> int:
        """Steps in one of which prompts are begun, where few rows are free (`step.Patience`)."""
        held = sum(parameter.nbytes for parameter in self.model.parameters())
        return PATIENCE if self.graphs and held < SMALL_LAYER * len(self.model.local_layers) else 1

    @property
    def in_rows(self) -> bool:
        """Whether decoding and filling are passes of their own, over as many rows on all ranks that share experts."""
        return self.graphs or self.horizon > 1

    @property
    def cache_bytes(self) -> int:
        return 0 if self.cache is None else self.cache.bytes

    def serves(self, size: CacheSize) -> bool:
        """Whether there is a cache of this size, or a larger one."""
        return self.cache is not None and self.cache.serves(size)

    def open(self, size: CacheSize) -> None:
        """See to a cache that is as large as `size` at least.

        Raises:
            UserError: there is no memory for it.
        """
        if self.serves(size):
            return
        self._drop_cache()  # before taking more
        try:
            self.cache = PagedCache(size, self.model, self.context)
        except RuntimeError as error:  # torch's ways to say that there is no memory, of a GPU and of a CPU
            raise UserError(
                f"no memory for a KV cache of {size.pages * size.page_size:,} tokens: lower --sampling.kv-tokens, "
                f"--sampling.kv-fraction or --sampling.max-batch"
            ) from error

    def follow_weights(self) -> None:
        """See to weights in FP8 that are the model's as they are now. Before the size of a cache is found: it gets of what
        memory is left.

        Raises:
            UserError: there is no memory for them.
        """
        if not self.sampling.narrow:
            return
        if self.narrow is not None:
            self.narrow.refill()
            return
        try:
            self.narrow = NarrowExperts(self.model, parts=1 if self.sampling.activations == "fp8" else 2)
        except RuntimeError as error:
            raise UserError(
                f"--sampling.weights {self.sampling.weights}: no memory for a second copy of the experts' weights: leave it "
                f"at bf16, or split the experts over more ranks (--parallel.expert)"
            ) from error

    def _drop_cache(self) -> None:
        self.drop_loop()
        self.cache = None

    def release(self) -> None:
        """Give back the memory of the cache, and of weights in FP8."""
        self._drop_cache()
        self.narrow = None

    @property
    def has_loop(self) -> bool:
        """Whether there is what CUDA graphs were captured with."""
        return self._loop is not None

    def drop_loop(self) -> None:
        """Forget the captured graphs."""
        if self._loop is not None:
            synchronize()  # some may be running
        self._loop = None

    def loop(self) -> DecodeLoop:
        """What decodes in rows. There must be a cache."""
        if self._loop is None:
            assert self.cache is not None
            most = self.sampling.most_rows(self.context.device.type)  # of any rank, which all may have to compute
            about = (most, self.graphs, self.note_routes, self.narrow, self._eos_id, self.overlaps, self.early)
            self._loop = DecodeLoop(self.model, self.cache, *about)
        return self._loop

    @property
    def captured(self) -> int:
        """CUDA graphs that there are."""
        return 0 if self._loop is None else len(self._loop.captured)

    def capture(self, key: GraphKey) -> None:
        """Capture a graph before its batch comes; a failure is told as by `launch`."""
        with self._told():
            self.loop().captured_turn(key)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures name this rank, and what to lower where memory ran out."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryRanOutError(
                f"rank {self.context.rank}: sampling ran out of memory: lower --sampling.kv-fraction, "
                f"--sampling.prefill-tokens or --sampling.max-batch"
            ) from error
        except Exception as error:
            raise RuntimeError(f"rank {self.context.rank}: {type(error).__name__}: {error}") from error

    @torch.no_grad()
    def launch(self, step: Step, shape: StepShape, meanwhile: Callable[[], None] | None = None) -> Land:
        """Run a step through all pipeline stages: as many tokens as `shape.turns` for each sequence that decodes. Scores of
        prompts come beside them. Where tokens are scored no graph is used: it keeps no logits.

        Where nothing is decoded in rows, all is done when this returns. Otherwise the device has been asked for it, and the
        result waits for the tokens. What is asked for later comes behind it.

        Others may wait inside the same forward pass and cannot be told of a failure: this process ends, and its launcher
        ends theirs.

        Args:
            shape: of the step of all ranks that share experts.
            meanwhile: called once: when the device has got what it decodes in rows, else before the pass.

        Raises:
            UserError, RuntimeError: naming this rank. So does the result.
        """
        assert self.cache is not None
        with self._told():
            self.cache.prepare(step)
            if not self.in_rows or shape.scored:
                if meanwhile is not None:
                    meanwhile()
                done = self._forward_eagerly(step.decoding, step.chunks)
                return lambda: done
            rows = self.loop().launch(step.decoding, shape) if shape.rows else list
            if shape.fills:  # the host launches the fill, and does other work, while the device decodes
                self._forward_eagerly([], step.chunks)
            if meanwhile is not None:
                meanwhile()

        def land() -> tuple[list[Sampled], PromptScores]:
            with self._told():
                return rows(), {}

        return land

    def _forward_eagerly(self, decoding: list[Response], chunks: list[Chunk]) -> tuple[list[Sampled], PromptScores]:
        assert self.cache is not None
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
        layout = PagedLayout(positions_t, rows_t, real, ends, [chunk.count for chunk in chunks], self.cache)
        layout.narrow = self.narrow
        noted = new_routes(self.model, len(tokens_t)) if self.note_routes else None
        if noted is not None:
            layout.routes = NotedRoutes(noted, self.model.route_layers.start)
        hidden = hidden_of_last_stage(self.model, tokens_t, layout)
        prompt_scores = score_prompts(self.model, hidden, decoding, chunks)
        if not decoding:
            return [], prompt_scores
        logits_nv = None
        if hidden is not None:
            logits_nv = self.model.output_layer.logits(hidden, torch.arange(len(decoding), device=self.context.device))
        columns = collectives.broadcast_from_last_stage(self._draw(logits_nv, decoding)).tolist()
        numbers = [
            [[int(value)] for value in part] if column.typecode == "i" else [[value] for value in part]
            for column, part in zip(DRAWN, columns, strict=True)
        ]
        routes: list[list[bytes]] = [[] for _ in decoding]
        if noted is not None:
            routes = routes_as_bytes(noted[None, : len(decoding)])
        scores = score_sampled(self.model, logits_nv, decoding, columns[0])
        found = zip(zip(*numbers, strict=True), routes, scores, strict=True)
        return [Sampled(tuple(of_row), chosen, score) for of_row, chosen, score in found], prompt_scores

    def _draw(self, logits_nv: torch.Tensor | None, decoding: list[Response]) -> torch.Tensor:
        """float64 [columns, N] for the rows' logits; room for them where those are on another stage."""
        if logits_nv is None:
            return torch.empty(len(DRAWN), len(decoding), dtype=torch.float64, device=self.context.device)
        seeds, counts = self._tensor([[s.request.seed for s in decoding], [len(s.tokens) for s in decoding]])
        some_cuts = any(sequence.cuts for sequence in decoding)
        settings = RowSettings.of([sequence.numbers for sequence in decoding], some_cuts, self.context.device)
        tensor_rank, exact = self.context.tensor_rank, self.model.config.ring_exact
        return fill_columns(draw_rows(logits_nv, seeds, counts, settings, tensor_rank, exact))

    def _tensor(self, values: list) -> torch.Tensor:
        return upload(values, self.context.device)
