"""What is asked of the sampler and what it returns; the queue between them. No tensors."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class GenerationRequest:
    """One response to draw. The result depends on `seed` and the weights, not on the batch it is decoded in."""

    prompt_tokens: list[int]
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Completion:
    """Sampled tokens (the final end-of-sequence token included), with the log-probability of each and the entropy of the
    distribution it was drawn from (nats)."""

    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    finish_reason: Literal["stop", "length"]


def request_seed(*parts: int) -> int:
    """A 63-bit seed from integers such as (run seed, prompt, sample)."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass
class ActiveSequence:
    """A request being decoded."""

    index: int
    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    @property
    def next_position(self) -> int:
        """Position of the token that is fed next (the last sampled one)."""
        return len(self.request.prompt_tokens) + len(self.tokens) - 1

    def append(self, token: int, logprob: float, entropy: float, eos_id: int) -> None:
        """Take one sampled token; sets `finish_reason` when it is the last."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.entropies.append(entropy)
        if token == eos_id:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.request.max_new_tokens:
            self.finish_reason = "length"

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        return Completion(self.tokens, self.logprobs, self.entropies, self.finish_reason)


class Queue:
    """Continuous batching over cache slots 0..n-1, kept without holes: sequence i of `active` owns slot i."""

    def __init__(self, requests: Sequence[GenerationRequest], slots: int, prefill_tokens: int) -> None:
        self.slots = slots
        self.prefill_tokens = prefill_tokens
        self.waiting = deque(ActiveSequence(i, request) for i, request in enumerate(requests))
        self.active: list[ActiveSequence] = []
        self.completions: list[Completion | None] = [None] * len(requests)
        self._finished: list[int] = []

    def admit(self) -> list[ActiveSequence]:
        """Move waiting requests into free slots, at most `prefill_tokens` prompt tokens at a time; the newly admitted."""
        admitted: list[ActiveSequence] = []
        tokens = 0
        while self.waiting and len(self.active) < self.slots:
            length = len(self.waiting[0].request.prompt_tokens)
            if admitted and tokens + length > self.prefill_tokens:
                break
            tokens += length
            admitted.append(self.waiting.popleft())
            self.active.append(admitted[-1])
        return admitted

    def retire(self) -> list[tuple[int, int]]:
        """Take out finished sequences; the (from, to) slot moves that close the holes, in order."""
        moves = []
        slot = 0
        while slot < len(self.active):
            sequence = self.active[slot]
            if sequence.finish_reason is None:
                slot += 1
                continue
            self.completions[sequence.index] = sequence.completion()
            self._finished.append(sequence.index)
            last = self.active.pop()
            if slot < len(self.active):
                self.active[slot] = last
                moves.append((len(self.active), slot))
        return moves

    def take_finished(self) -> list[tuple[int, Completion]]:
        """What has finished since the last call, with its place among the requests."""
        finished, self._finished = self._finished, []
        return [(index, completion) for index in finished if (completion := self.completions[index]) is not None]

    def results(self) -> list[Completion]:
        """All completions, in the order of the requests."""
        assert all(completion is not None for completion in self.completions)
        return [completion for completion in self.completions if completion is not None]
