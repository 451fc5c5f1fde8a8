"""What is asked of the sampler, what it returns, and the state of a response between the two. No tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import MutableSequence
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_ring.sampler.completion import Completion, FinishReason, number_array, token_array


@dataclass(frozen=True)
class GenerationRequest:
    """One response to draw. The result depends on `seed` and the weights, not on the batch it is decoded in, nor on where
    an earlier call stopped.

    Attributes:
        prompt_tokens: at least one.
        seed: int64, not negative.
        max_new_tokens: longest response, what `begun` holds included.
        begun: what an earlier call sampled before its token budget was used up.
    """

    prompt_tokens: list[int]
    seed: int
    max_new_tokens: int
    begun: Completion = field(default_factory=Completion)

    def continued(self, begun: Completion) -> GenerationRequest:
        """The request that continues `begun`, an unfinished answer to this one. Its random numbers go on where they
        stopped; its keys and values are computed anew."""
        return dataclasses.replace(self, begun=begun)


def request_seed(*parts: int) -> int:
    """A 63-bit seed from integers such as (run seed, prompt, sample)."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(eq=False)
class Prefix:
    """What the samples of one prompt share: the keys and values of its tokens but the last, which each sample feeds itself.

    Attributes:
        length: tokens.
        unfinished: samples that are not finished.
        pages: held from when they are filled until all samples are finished, or until memory runs short.
        filler: the sample that is filling them.
        blocked: samples that wait for it.
    """

    length: int
    unfinished: int = 0
    pages: list[int] = field(default_factory=list)
    filler: Sequence | None = None
    blocked: list[Sequence] = field(default_factory=list)


class Sampled(NamedTuple):
    """Tokens drawn in a row for one sequence, as `Completion` describes their numbers; `routes` token by token."""

    tokens: MutableSequence[int]
    logprobs: MutableSequence[float]
    processed_logprobs: MutableSequence[float]
    entropies: MutableSequence[float]
    routes: Sequence_[bytes] = ()

    def extend(self, other: Sampled, start: int, end: int) -> None:
        """Take other's tokens start..end-1."""
        self.tokens.extend(other.tokens[start:end])
        self.logprobs.extend(other.logprobs[start:end])
        self.processed_logprobs.extend(other.processed_logprobs[start:end])
        self.entropies.extend(other.entropies[start:end])


class Sequence:
    """A request being answered: what has been sampled, and where its keys and values are."""

    def __init__(self, index: int, request: GenerationRequest, prefix: Prefix) -> None:
        self.index, self.request, self.prefix = index, request, prefix
        self.tokens = request.begun.tokens[:]
        self.sampled = Sampled(token_array(), number_array(), number_array(), number_array())  # in this call
        self.routes = bytearray()
        self.finish_reason: FinishReason | None = None
        self.length = len(request.prompt_tokens) + len(self.tokens)
        self.row = -1  # of the block table; -1: not running
        self.pages: list[int] = []
        self.cached = 0  # tokens whose keys and values lie in `pages`
        self.writable = 0  # positions from `cached` up to here lie in pages that nobody else uses

    @property
    def left_to_fill(self) -> int:
        """Tokens before the last one that are not cached. At 0 the last token is fed, and a new one sampled."""
        return self.length - 1 - self.cached

    @property
    def limit(self) -> int:
        """Tokens that are ever cached, at most: the last one that may be sampled is not fed."""
        return len(self.request.prompt_tokens) + self.request.max_new_tokens - 1

    @property
    def last_token(self) -> int:
        return self.tokens[-1] if self.tokens else self.request.prompt_tokens[-1]

    def slice(self, start: int, count: int) -> list[int]:
        """`count` tokens of prompt and response from position `start`."""
        prompt = self.request.prompt_tokens
        end = start + count
        return [*prompt[start:end], *self.tokens[max(0, start - len(prompt)) : max(0, end - len(prompt))]]

    def take(self, drawn: Sampled, start: int, end: int) -> None:
        """Take drawn tokens start..end-1."""
        self.tokens.extend(drawn.tokens[start:end])
        self.sampled.extend(drawn, start, end)
        self.routes += b"".join(drawn.routes[start:end])
        self.length += end - start

    def completion(self, version: int) -> Completion:
        """What there is, where `version` are the weights of this call."""
        begun, new = self.request.begun, self.sampled
        versions = [list(span) for span in begun.versions]
        if versions and versions[-1][0] == version:
            versions[-1][1] += len(new.tokens)
        elif new.tokens:
            versions.append([version, len(new.tokens)])
        return Completion(
            tokens=self.tokens[:],
            logprobs=_joined(begun.logprobs, new.logprobs),
            processed_logprobs=_joined(begun.processed_logprobs, new.processed_logprobs),
            entropies=_joined(begun.entropies, new.entropies),
            versions=versions,
            finish_reason=self.finish_reason,
            routes=begun.routes + self.routes,
        )


def _joined(first: array[float], more: Sequence_[float]) -> array[float]:
    whole = first[:]
    whole.extend(more)
    return whole
