"""Decoding several tokens in a row without a look at them from the host: each is fed to the next forward pass on the
device.

On CUDA a forward pass with its draw is one CUDA graph, made when a batch of its size first comes. A graph names the memory
of weights and cache: it lasts as long as the cache does. New weights are written where the old ones were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.model.ring_model import RingModel, forward_all_stages
from megatron_ring.model.routes import NotedRoutes, new_routes, routes_as_bytes
from megatron_ring.parallel.graphs import Graphs
from megatron_ring.sampler.attention import DecodeLayout
from megatron_ring.sampler.cache import PagedCache
from megatron_ring.sampler.requests import Sampled
from megatron_ring.sampler.requests import Sequence as Response
from megatron_ring.sampler.sampling import draw_rows

HORIZON = 16  # tokens in a row: they share the host's work, and at most one less is computed in vain at an end
SPAN = 512  # a graph serves contexts up to SPAN * 2^i tokens


def bucket(rows: int) -> int:
    """The batch that `rows` sequences are decoded in: 1, 2, 4, 8, 16, then also one and a half times these."""
    size = 1
    while size < rows:
        size *= 2
    return size // 4 * 3 if size >= 32 and size // 4 * 3 >= rows else size


class DecodeLoop:
    """Decodes rows of `cache`, for a model whose layers are all in this process. Ranks that share experts, or a replica,
    call it together, with the same turns, rows and longest.

    Args:
        graphs: run forward passes as CUDA graphs.
        note_routes: note the experts of each token.
    """

    def __init__(
        self, model: RingModel, cache: PagedCache, sampling: SamplingConfig, graphs: bool, note_routes: bool = False
    ) -> None:
        self.model, self.cache, self.sampling, self.graphs = model, cache, sampling, graphs
        device, most = cache.keys.device, self.size(sampling.max_batch)
        # Of each row: token to feed, its position, row of the block table, end of what it may write, seed, tokens it has.
        self.state = torch.zeros(6, most, dtype=torch.int64, device=device)
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)
        self.drawn = torch.zeros(HORIZON, 4, most, dtype=torch.float64, device=device)
        self.noted = new_routes(model, most) if note_routes else None  # of one turn
        self.routes = None if self.noted is None else torch.stack([self.noted] * HORIZON)
        self._graphs = Graphs() if graphs else None
        self._captured: dict[tuple[int, int], Callable[[], None]] = {}

    def size(self, rows: int) -> int:
        """Rows that are computed for so many sequences; as many for every tensor-parallel rank."""
        wanted, tensor = bucket(rows) if self.graphs else rows, self.model.tensor_size
        return -(-wanted // tensor) * tensor

    @torch.no_grad()
    def run(self, sequences: Sequence[Response], turns: int, rows: int, longest: int) -> list[Sampled]:
        """`turns` (at most HORIZON) tokens for each of the sequences.

        Args:
            rows: at least as many as sequences on any rank that calls this now.
            longest: no sequence becomes longer in these turns.
        """
        size, count, span = self.size(rows), len(sequences), SPAN
        while span < longest:
            span *= 2
        turn = self._captured_turn(size, span) if self.graphs else partial(self._one_token, size, longest)
        columns = [(s.last_token, s.cached, s.row, s.writable, s.request.seed, len(s.tokens)) for s in sequences]
        columns += [(0,) * 6] * (size - count)
        self.state[:, :size].copy_(torch.tensor(columns, dtype=torch.int64).t())
        self.turn.zero_()
        for _ in range(turns):
            turn()
        drawn = self.drawn[:turns, :, :count].permute(2, 1, 0).cpu()
        numbers = drawn[:, 1:].tolist()
        routes = [()] * count if self.routes is None else routes_as_bytes(self.routes[:turns, :count])
        ids = drawn[:, 0].long().tolist()
        return [Sampled(*found) for found in zip(ids, *zip(*numbers, strict=True), routes, strict=True)]

    def _one_token(self, size: int, longest: int) -> None:
        state = self.state[:, :size]
        tokens, positions, rows, writable, seeds, counts = state.unbind()
        layout = DecodeLayout(positions, rows, writable, longest, self.cache)
        if self.noted is not None:
            layout.routes = NotedRoutes(self.noted[:size], self.model.route_layers.start)
        logits_nv = forward_all_stages(self.model, tokens, layout)
        assert logits_nv is not None
        exact = self.model.config.ring_exact
        drawn = draw_rows(logits_nv, seeds, counts, self.sampling, self.model.tensor_rank, exact)
        self.drawn[:, :, :size].index_copy_(0, self.turn, drawn[None])
        if self.routes is not None and self.noted is not None:
            self.routes.index_copy_(0, self.turn, self.noted[None])
        tokens.copy_(drawn[0])
        positions += 1
        counts += 1
        self.turn += 1

    def _captured_turn(self, size: int, span: int) -> Callable[[], None]:
        assert self._graphs is not None
        turn = self._captured.get((size, span))
        if turn is None:
            self.state.zero_()  # no row is a sequence: what the first run writes is scrap
            self.turn.zero_()
            self._one_token(size, span)  # compiles what is new
            turn = self._captured[size, span] = self._graphs.capture(partial(self._one_token, size, span))
        return turn
