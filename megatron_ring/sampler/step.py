"""A step of the sampler: which sequences decode, what is filled beside them. No tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_ring.errors import NotFiniteError
from megatron_ring.sampler.columns import NAMES
from megatron_ring.sampler.pages import PagePool, pages_for
from megatron_ring.sampler.requests import Sampled, Sequence

_LOGPROBS, _ENTROPIES = NAMES.index("logprobs"), NAMES.index("entropies")
FILL_BESIDE = 8  # tokens in a row beside a small fill: about as long as the host takes to launch it
SMALL_FILL = 4096  # tokens


@dataclass(frozen=True)
class Chunk:
    """Tokens start..start+count-1 of a sequence, to be filled."""

    sequence: Sequence
    start: int
    count: int

    @property
    def scored(self) -> int:
        """Tokens of the chunk, its first ones, whose successor in the prompt is to be scored."""
        request = self.sequence.request
        return max(0, min(self.count, len(request.prompt_tokens) - 1 - self.start)) if request.prompt_scores else 0


@dataclass
class Step:
    """One forward pass: all of `decoding` feed their last token, `chunks` are filled beside them.

    Before it, pages are copied (`copies`: target -> source, all read before any is written) and the block table changes:
    `table` holds (row, column, page). With a `horizon` above 1 it is so many forward passes without a look between them;
    a sequence that ends on the way goes on to no effect.
    """

    decoding: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    copies: dict[int, int] = field(default_factory=dict)
    table: list[tuple[int, int, int]] = field(default_factory=list)
    horizon: int = 1

    def fills_beside(self, begin: int) -> bool:
        """Whether the rows may decode several tokens while the host launches the fill, as the device would wait for it. A
        larger fill keeps it busy, and where many rows (`begin` in all) wait to begin, they lose more by it."""
        return 4 * begin <= len(self.decoding) and sum(chunk.count for chunk in self.chunks) <= SMALL_FILL

    @property
    def scored(self) -> bool:
        """Whether scores of tokens are wanted of it."""
        asked = any(sequence.request.scored for sequence in self.decoding)
        return asked or any(chunk.sequence.request.prompt_scores for chunk in self.chunks)

    def look_ahead(self, horizon: int, pool: PagePool, page_size: int) -> None:
        """Give every sequence that decodes the pages for `horizon` tokens, if there are so many; or for the most that one of
        them has left, if that is fewer."""
        left = [sequence.request.max_new_tokens - len(sequence.tokens) - sequence.flying for sequence in self.decoding]
        horizon = min(horizon, max(1, *left)) if left else horizon
        wanted = [pages_for(min(sequence.cached + horizon, sequence.limit), page_size) for sequence in self.decoding]
        more = [count - len(sequence.pages) for sequence, count in zip(self.decoding, wanted, strict=True)]
        if sum(count for count in more if count > 0) > pool.free:
            return
        for sequence, count in zip(self.decoding, more, strict=True):
            for _ in range(count):
                page = pool.take()
                self.table.append((sequence.row, len(sequence.pages), page))
                sequence.pages.append(page)
            sequence.writable = len(sequence.pages) * page_size
        self.horizon = horizon


class Patience:
    """Whether a step begins prompts. Where less than an eighth of the rows is free that is so in one of `steps` steps, not
    in each: a fill that is short for the device takes the host as long as a large one.

    Args:
        rows: sequences running at once.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.steps, self._waited = rows, 1, 0

    def is_over(self, free: int) -> bool:
        """Asked once in each step, with the rows that are free."""
        self._waited += 1
        return self._waited >= self.steps or 8 * free >= self.rows

    def begun(self, prompt: bool) -> None:
        """A sequence has been admitted whose prompt nobody holds."""
        self._waited = 0 if prompt else self._waited


class StepShape(NamedTuple):
    """What ranks that share experts must agree on before a step, as each of them runs the same passes over as many rows.

    Attributes:
        rows: sequences that decode, on the rank that has the most.
        longest: no sequence becomes longer in the step.
        fills: 1 where some rank fills chunks.
        turns: forward passes in a row, as few as on any rank.
        cuts: 1 where some row of some rank is cut or greedy (`row_settings.cuts`).
        scored: 1 where scores of tokens are wanted on some rank.
    """

    rows: int
    longest: int
    fills: int
    turns: int
    cuts: int
    scored: int = 0

    @classmethod
    def of(cls, step: Step) -> StepShape:
        """Of this rank's step."""
        # None beyond its limit: at the end of the model's positions that would ask for a graph of twice the span.
        longest = max((min(sequence.cached + step.horizon, sequence.limit) for sequence in step.decoding), default=0)
        some_cuts = any(sequence.cuts for sequence in step.decoding)
        return cls(len(step.decoding), longest, int(bool(step.chunks)), step.horizon, int(some_cuts), int(step.scored))


def check_finite(drawn: Iterable[tuple[Sequence, Sampled]]) -> None:
    """Raises `NotFiniteError` where a number that was drawn beside a token is none."""
    for sequence, found in drawn:
        logprobs, entropies = found.columns[_LOGPROBS], found.columns[_ENTROPIES]
        if math.isfinite(sum(logprobs) + sum(entropies)):
            continue
        wrong = [not math.isfinite(a + b) for a, b in zip(logprobs, entropies, strict=True)].index(True)
        raise NotFiniteError(
            f"response {sequence.index}, token {len(sequence.tokens) + wrong}: the model's logits are not finite: its "
            f"weights are broken, go back to an earlier checkpoint"
        )
