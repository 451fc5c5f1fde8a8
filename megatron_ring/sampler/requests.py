"""What is asked of the sampler, and the state of a response while it is being answered. No tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_ring.config.sampling import RequestSampling
from megatron_ring.errors import RequestError
from megatron_ring.sampler.columns import DRAWN, NAMES
from megatron_ring.sampler.completion import Completion, FinishReason, absent_columns
from megatron_ring.sampler.pages import PagePool
from megatron_ring.sampler.row_settings import cuts, numbers_of
from megatron_ring.sampler.stopping import StopConditions

if TYPE_CHECKING:
    from megatron_ring.sampler.scores import TokenScore

MOST_TOP_LOGPROBS = 20  # likeliest tokens of a position


@dataclass(frozen=True)
class GenerationRequest:
    """One response to draw. The result depends on the request and the weights, not on the batch it is decoded in, nor on
    where an earlier call stopped.

    Attributes:
        prompt_tokens: at least one.
        seed: int64, not negative.
        max_new_tokens: longest response, what `begun` holds included.
        begun: what an earlier call sampled before its token budget was used up.
        sampling: how its tokens are drawn and what ends it (None: as the sampler's own settings say).
        columns: names of the columns (`columns.NAMES`) that are wanted beside its tokens, such as "logprobs" (None: all).
        top_logprobs: so many likeliest tokens are told of each position, with their log-probabilities (None: no scores;
            0: the token's own alone). Steps bring them, a `Completion` has none.
        prompt_scores: the tokens of the prompt are scored too, the first apart. Its prompt is not shared with others.
    """

    prompt_tokens: list[int]
    seed: int
    max_new_tokens: int
    begun: Completion = field(default_factory=Completion)
    sampling: RequestSampling | None = None
    columns: frozenset[str] | None = None
    top_logprobs: int | None = None
    prompt_scores: bool = False

    def continued(self, begun: Completion) -> GenerationRequest:
        """The request that continues `begun`, an unfinished answer to this one. Its random numbers go on where they
        stopped; its keys and values are computed anew."""
        return dataclasses.replace(self, begun=begun)

    @property
    def scored(self) -> bool:
        """Whether scores of tokens are wanted: they are made of each pass's logits."""
        return self.top_logprobs is not None

    def check(self, max_positions: int) -> None:
        """Raise `RequestError` where a model of so many positions cannot answer it."""
        prompt, new = len(self.prompt_tokens), self.max_new_tokens
        if prompt + new > max_positions:
            raise RequestError(
                f"a prompt of {prompt} tokens and {new} new ones exceed the model's {max_positions} positions: lower "
                f"--sampling.max-new-tokens"
            )
        if prompt == 0:
            raise RequestError("a prompt without tokens: give each at least one")
        if self.begun.length >= new:
            raise RequestError(f"a response of {self.begun.length} tokens is not to have more than {new}")
        if not 0 <= self.seed < 2**63:
            raise RequestError(f"seed {self.seed} is outside 0..2^63-1")
        if self.columns is not None and not self.columns <= set(NAMES):
            unknown = ", ".join(sorted(self.columns - set(NAMES)))
            raise RequestError(f"no column is named {unknown}: ask for some of {', '.join(NAMES)}")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise RequestError(f"{self.top_logprobs} likeliest tokens: ask for 0 to {MOST_TOP_LOGPROBS}")
        if self.prompt_scores and self.top_logprobs is None:
            raise RequestError("scores of the prompt without a number of likeliest tokens: set top_logprobs, 0 for none")


def request_seed(*parts: int) -> int:
    """A 63-bit seed from integers such as (run seed, prompt, sample)."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(eq=False)
class Prefix:
    """What the samples of one prompt share: the keys and values of its tokens but the last, which each sample feeds itself.

    Attributes:
        tokens: of the whole prompt.
        unfinished: samples that are not finished.
        pages: held from when they are filled until all samples are finished, or until memory runs short.
        filler: the sample that is filling them.
        blocked: samples that wait for it.
        owner: index of the only sample, where it shares its prompt with none.
    """

    tokens: tuple[int, ...]
    unfinished: int = 0
    pages: list[int] = field(default_factory=list)
    filler: Sequence | None = None
    blocked: list[Sequence] = field(default_factory=list)
    owner: int | None = None

    @property
    def key(self) -> tuple[int | None, tuple[int, ...]]:
        """What tells it from others."""
        return self.owner, self.tokens

    @property
    def length(self) -> int:
        """Tokens that are shared."""
        return len(self.tokens) - 1


class Sampled(NamedTuple):
    """Tokens drawn in a row for one sequence.

    Attributes:
        columns: numbers of each of `columns.DRAWN`, in its order.
        routes: experts of each token; empty where they are not noted.
        scores: of each token, where the request asks for them.
    """

    columns: tuple[MutableSequence[Any], ...]
    routes: MutableSequence[bytes]
    scores: tuple[TokenScore, ...] = ()

    @property
    def tokens(self) -> MutableSequence[int]:
        return self.columns[0]

    def of(self, name: str) -> MutableSequence[Any]:
        """The column of that name."""
        return self.columns[NAMES.index(name)]

    def first(self, count: int) -> Sampled:
        """The first `count` tokens."""
        if count == len(self.tokens):
            return self
        return Sampled(tuple(column[:count] for column in self.columns), self.routes[:count], self.scores[:count])

    def joined(self, later: Sampled) -> Sampled:
        """These tokens and the next."""
        columns = tuple(column[:] for column in self.columns)
        for column, more in zip(columns, later.columns, strict=True):
            column.extend(more)
        return Sampled(columns, [*self.routes, *later.routes], self.scores + later.scores)


class Sequence:
    """A request being answered: what has been sampled, and where its keys and values are.

    Args:
        sampling: how its tokens are drawn.
        stops: what ends it, where the scheduler is not told otherwise.
    """

    def __init__(
        self, index: int, request: GenerationRequest, prefix: Prefix, sampling: RequestSampling | None = None,
        stops: StopConditions | None = None,
    ) -> None:  # fmt: skip
        self.index, self.request, self.prefix = index, request, prefix
        self.sampling, self.stops = sampling or request.sampling or RequestSampling(), stops
        self.cuts = cuts(self.sampling)
        self.numbers = numbers_of(self.sampling)
        self.absent = absent_columns(request.columns, request.begun)
        self.columns: list[array[Any]] = [
            column.new() if column.name in self.absent else getattr(request.begun, column.name)[:] for column in DRAWN
        ]
        self._kept = [place for place, column in enumerate(DRAWN) if column.name not in self.absent]
        self.versions = [list(span) for span in request.begun.versions]
        self.routes = bytearray(request.begun.routes)
        self.finish_reason: FinishReason | None = None
        self.length = len(request.prompt_tokens) + len(self.tokens)
        # Tokens that are ever cached, at most: the last one that may be sampled is not fed.
        self.limit = len(request.prompt_tokens) + request.max_new_tokens - 1
        self.row = -1  # of the block table; -1: not running
        self.pages: list[int] = []
        self.cached = 0  # tokens whose keys and values lie in `pages`, those that the device has been asked for included
        self.flying = 0  # tokens that the device has been asked for and the host has not seen
        self.writable = 0  # positions from `cached` up to here lie in pages that nobody else uses

    @property
    def tokens(self) -> array[int]:
        """What has been sampled."""
        return self.columns[0]

    @property
    def left_to_fill(self) -> int:
        """Tokens before the last one that are not cached. At 0 the last token is fed, and a new one sampled."""
        return self.length + self.flying - 1 - self.cached

    @property
    def all_asked(self) -> bool:
        """Whether its longest response is in the air: it ends when that lands, if not before."""
        return self.flying > 0 and len(self.tokens) + self.flying >= self.request.max_new_tokens

    @property
    def longest(self) -> int:
        """Tokens that may be sampled, at most."""
        return self.request.max_new_tokens

    @property
    def last_token(self) -> int:
        tokens = self.columns[0]
        return tokens[-1] if tokens else self.request.prompt_tokens[-1]

    def lacks_a_page(self, pool: PagePool, page_size: int) -> bool:
        """Whether it has no page of its own for its next token, if there is one."""
        if self.cached < self.writable or self.all_asked:
            return False
        column = self.cached // page_size
        return column >= len(self.pages) or pool.is_shared(self.pages[column])

    def slice(self, start: int, count: int) -> list[int]:
        """`count` tokens of prompt and response from position `start`."""
        prompt = self.request.prompt_tokens
        end = start + count
        return [*prompt[start:end], *self.tokens[max(0, start - len(prompt)) : max(0, end - len(prompt))]]

    def take(self, drawn: Sampled, start: int, end: int, version: int = 0) -> None:
        """Take drawn tokens start..end-1, sampled under `version` of the weights."""
        count, columns = end - start, drawn.columns
        if count == len(columns[0]):
            for place in self._kept:
                self.columns[place].extend(columns[place])
        else:
            for place in self._kept:
                self.columns[place].extend(columns[place][start:end])
        if drawn.routes:
            self.routes += b"".join(drawn.routes[start:end])
        self.length += count
        if self.versions and self.versions[-1][0] == version:
            self.versions[-1][1] += count
        elif count:
            self.versions.append([version, count])

    def take_to_end(self, drawn: Sampled, stop: Callable[[Sequence], FinishReason | None], version: int) -> int:
        """Take drawn tokens up to the one that ends the sequence; how many."""
        for place in range(len(drawn.tokens)):
            self.take(drawn, place, place + 1, version)
            self.finish_reason = stop(self)
            if self.finish_reason is not None:
                return place + 1
        return len(drawn.tokens)

    def completion(self) -> Completion:
        """What there is."""
        columns: dict[str, Any] = {column.name: values[:] for column, values in zip(DRAWN, self.columns, strict=True)}
        return Completion(
            **columns, versions=[list(span) for span in self.versions], finish_reason=self.finish_reason,
            absent=self.absent, routes=bytes(self.routes),
        )  # fmt: skip
