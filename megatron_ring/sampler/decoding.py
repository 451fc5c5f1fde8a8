"""Decoding several tokens in a row without a look at them from the host: each is fed to the next forward pass on the
device.

On CUDA a forward pass with its draw is one CUDA graph, made when a batch of its size first comes, and once more when some
row of it is cut. What rows are sampled with it reads from the device. A graph names the memory of weights and cache: it
lasts as long as the cache does. New weights are written where the old ones were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from megatron_ring.model.kernels.dependent import dependent_launches
from megatron_ring.model.narrow import NarrowExperts
from megatron_ring.model.ring_model import RingModel, forward_all_stages
from megatron_ring.model.routes import NotedRoutes, new_routes, routes_as_bytes
from megatron_ring.parallel.device import HostCopy, upload
from megatron_ring.parallel.graphs import Graphs, SideStream
from megatron_ring.sampler.attention import DecodeLayout
from megatron_ring.sampler.cache import PagedCache
from megatron_ring.sampler.columns import DRAWN, fill_columns, rows_of
from megatron_ring.sampler.requests import Sampled
from megatron_ring.sampler.requests import Sequence as Response
from megatron_ring.sampler.row_settings import NUMBERS, UNCUT, RowSettings
from megatron_ring.sampler.sampling import draw_rows
from megatron_ring.sampler.step import StepShape

HORIZON = 16  # tokens in a row: they share the host's work, and at most one less is computed in vain at an end
SPAN = 512  # a graph serves contexts up to SPAN * 2^i tokens


def bucket(rows: int) -> int:
    """The batch that `rows` sequences are decoded in: 1, 2, 4, 8, 16, then also one and a half times these; above 256, where
    a row costs more than the launch of a kernel, each eighth of a power of two."""
    size = 1
    while size < rows:
        size *= 2
    if size > 256:
        return -(-rows // (size // 8)) * (size // 8)
    return size // 4 * 3 if size >= 32 and size // 4 * 3 >= rows else size


def span_of(longest: int) -> int:
    """Tokens of context that a graph for contexts of up to `longest` serves."""
    span = SPAN
    while span < longest:
        span *= 2
    return span


class GraphKey(NamedTuple):
    """What a graph is captured for: rows that are computed, tokens of context at most, whether some row is cut."""

    size: int
    span: int
    cuts: bool


class DecodeLoop:
    """Decodes rows of `cache`, for a model whose layers are all in this process. Ranks that share experts, or a replica,
    call it together, with the same shape of the step.

    Args:
        eos_id: a row that has drawn it is idle from then on.
        max_batch: rows, at most.
        graphs: run forward passes as CUDA graphs.
        note_routes: note the experts of each token.
        narrow: the experts' weights, in the place of the model's own.
        overlaps: run shared experts beside the routed ones. Numbers are the same.
        early: launch kernels while the ones before still run (`model.kernels.dependent`). Numbers are the same.

    Attributes:
        captured: the graphs that there are; each does one turn.
    """

    def __init__(
        self, model: RingModel, cache: PagedCache, max_batch: int, graphs: bool, note_routes: bool = False,
        narrow: NarrowExperts | None = None, eos_id: int = -1, overlaps: bool = True, early: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.cache, self.graphs, self.narrow, self.eos_id = model, cache, graphs, narrow, eos_id
        device, most = cache.keys.device, self.size(max_batch)
        most += most % 2  # rows of numbers are aligned alike
        # Of each row: token to feed, its position, row of the block table, end of what it may write, seed, tokens it has.
        self.state = torch.zeros(6, most, dtype=torch.int64, device=device)
        self.settings = torch.empty(NUMBERS, most, dtype=torch.float64, device=device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(HORIZON, len(DRAWN), most, dtype=torch.float64, device=device)
        self.noted = new_routes(model, most) if note_routes else None  # of one turn
        self.routes = None if self.noted is None else torch.stack([self.noted] * HORIZON)
        self._graphs = Graphs() if graphs else None
        self._side = SideStream() if overlaps else None
        self._early = early
        self.captured: dict[GraphKey, Callable[[], None]] = {}
        self._places: dict[int, int] = {}  # of the sequences launched last, by index

    def size(self, rows: int) -> int:
        """Rows that are computed for so many sequences; as many for every tensor-parallel rank."""
        wanted, tensor = bucket(rows) if self.graphs else rows, self.model.tensor_size
        return -(-wanted // tensor) * tensor

    @torch.no_grad()
    def launch(self, sequences: Sequence[Response], shape: StepShape) -> Callable[[], list[Sampled]]:
        """Ask the device for `shape.turns` (at most HORIZON) tokens for each of the sequences, of which no other rank that
        calls this now has more than `shape.rows`. The result waits for them. What a sequence feeds that flies since the
        launch before is known to the device alone."""
        size, count, turns, cuts = self.size(shape.rows), len(sequences), shape.turns, shape.cuts > 0
        columns = [
            (
                s.last_token, s.cached, s.row, min(s.writable, s.limit), s.request.seed, len(s.tokens) + s.flying,
                self._places[s.index] if s.flying else -1,
            )
            for s in sequences
        ]  # fmt: skip
        columns += [(0, 0, 0, 0, 0, 0, -1)] * (size - count)
        rows = upload(columns, self.state.device).t()
        if any(s.flying for s in sequences):
            self._go_on(rows)
        if self.graphs:
            turn = self.captured_turn(GraphKey(size, span_of(shape.longest), cuts))
        else:
            turn = partial(self._one_token, size, shape.longest, cuts)
        self._places = {s.index: place for place, s in enumerate(sequences)}
        self.state[:, :size].copy_(rows[:-1])
        settings = [s.numbers for s in sequences] + [UNCUT] * (size - count)
        self.settings[:, :size].copy_(upload(settings, self.state.device, torch.float64).t())
        self.turn.zero_()
        for _ in range(turns):
            turn()
        # On their way before others give the device more to do, which need not be waited for.
        drawn = HostCopy(self.drawn[:turns, :, :count].permute(1, 2, 0))  # [columns, N, turns]
        noted = None if self.routes is None else HostCopy(self.routes[:turns, :count])

        def land() -> list[Sampled]:
            found = rows_of(drawn.tensor())
            if noted is None:
                return [Sampled(of_row, []) for of_row in found]
            return [Sampled(of_row, chosen) for of_row, chosen in zip(found, routes_as_bytes(noted.tensor()), strict=True)]

        return land

    def _go_on(self, rows: torch.Tensor) -> None:
        """Put into `rows`, int64 [7, N], as `launch` makes them, what the launch before has left of those that fly."""
        places = rows[6]
        left = self.state.index_select(1, places.clamp_min(0))
        flies = places >= 0
        rows[0] = torch.where(flies, left[0], rows[0])
        # One that goes on may write as far as it is. One that may not has drawn `eos_id`: nobody reads what it computes.
        rows[3].masked_fill_(flies & (left[3] < left[1]), 1)

    def _one_token(self, size: int, longest: int, cuts: bool) -> None:
        state = self.state[:, :size]
        tokens, positions, rows, writable, seeds, counts = state.unbind()
        layout = DecodeLayout(positions, rows, writable, longest, self.cache)
        layout.narrow, layout.side = self.narrow, self._side
        if self.noted is not None:
            layout.routes = NotedRoutes(self.noted[:size], self.model.route_layers.start)
        with dependent_launches(self._early):
            logits_nv = forward_all_stages(self.model, tokens, layout)
        assert logits_nv is not None
        settings = RowSettings(self.settings[:, :size], cuts)
        found = draw_rows(logits_nv, seeds, counts, settings, self.model.tensor_rank, self.model.config.ring_exact)
        if self.routes is not None and self.noted is not None:
            self.routes.index_copy_(0, self.turn, self.noted[None])
        if tokens.is_cuda:
            from megatron_ring.sampler import turn_triton

            rows_of_turn = (tokens, positions, writable, counts)
            turn_triton.go_on(fill_columns(found), self.drawn, self.turn, *rows_of_turn, self.eos_id)
            return
        self.drawn[:, :, :size].index_copy_(0, self.turn, fill_columns(found)[None])
        tokens.copy_(found.ids)
        writable.masked_fill_(found.ids == self.eos_id, 1)  # idle, as no position is as small again
        positions += 1
        counts += 1
        self.turn += 1

    @torch.no_grad()
    def captured_turn(self, key: GraphKey) -> Callable[[], None]:
        """The graph of that key, captured where there is none yet. No row may be under way."""
        assert self._graphs is not None
        turn = self.captured.get(key)
        if turn is None:
            self.state.zero_()  # no row is a sequence: what the first run writes is scrap
            self.settings.copy_(self.settings.new_tensor(UNCUT)[:, None])
            self.turn.zero_()
            self._one_token(*key)  # compiles what is new
            turn = self.captured[key] = self._graphs.capture(partial(self._one_token, *key))
        return turn
