"""What the sampler hands to training: one record per response, checked when it is built.

Tokens and their numbers are typed arrays: 16 bytes a token. As lists of Python's numbers they would be 140.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

# An end-of-sequence token; one of the other stop tokens; a stop string; the tail repeats itself; as long as it may be.
FinishReason = Literal["stop", "stop_token", "stop_string", "repetition", "length"]


def token_array(values: Iterable[int] = ()) -> array[int]:
    """Token ids as int32."""
    return array("i", values)


def number_array(values: Iterable[float] = ()) -> array[float]:
    """One number for each token as fp32, the precision that the sampler computes them in and the loss takes them in."""
    return array("f", values)


@dataclass(frozen=True, slots=True)
class Completion:
    """A response, whole or as far as it came. Any sequences of numbers will do; they are kept as typed arrays.

    Of a response that another data-parallel rank holds there are `versions` and `finish_reason` alone.

    Attributes:
        tokens: int32, what was sampled, the token that ended it and the tokens of a stop string included.
        logprobs: fp32, of each token under softmax(logits / temperature) (nats; temperature 1 for greedy decoding): what a
            training forward computes.
        processed_logprobs: fp32, of each token under what it was drawn from: that distribution cut by top-k, top-p, min-p.
        entropies: fp32, of softmax(logits / temperature) at each token (nats).
        versions: spans [weights version, tokens sampled under it], in order; a version is the number of updates before.
        finish_reason: None where it is not finished.
        routes: of each token, the experts in the pass that drew it: `model.routes.route_dtype` [tokens, L, k] as bytes, over
            the MoE layers of this process's pipeline stage. Empty where the sampler does not note them.

    Raises:
        ValueError: numbers or versions for more or fewer tokens than there are.
    """

    tokens: array[int] = field(default_factory=token_array)
    logprobs: array[float] = field(default_factory=number_array)
    processed_logprobs: array[float] = field(default_factory=number_array)
    entropies: array[float] = field(default_factory=number_array)
    versions: list[list[int]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    routes: bytes = b""

    def __post_init__(self) -> None:
        for name, make, kind in (("tokens", token_array, "i"), *((name, number_array, "f") for name in NUMBERS)):
            values = getattr(self, name)
            if not isinstance(values, array) or values.typecode != kind:
                object.__setattr__(self, name, make(values))
        for name in NUMBERS:
            count = len(getattr(self, name))
            if count != len(self.tokens):
                raise ValueError(f"{count} {name} for {len(self.tokens)} response tokens")
        if len(self.tokens) not in (0, self.length):
            raise ValueError(f"versions {self.versions} for {len(self.tokens)} response tokens")

    @property
    def length(self) -> int:
        """Tokens sampled so far, here or elsewhere."""
        return sum(count for _, count in self.versions)

    def without_tokens(self) -> Completion:
        """What every rank knows of it."""
        return Completion(versions=self.versions, finish_reason=self.finish_reason)


NUMBERS = ("logprobs", "processed_logprobs", "entropies")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response with what training needs to know about how it was sampled.

    Attributes:
        prompt_index: position of the prompt in the run's stream; the K responses of a group share it.
        sample: which of the K responses this is, from 0.
        prompt_id: the `id` of the prompt in its file.
        domain: the domain whose verifier scores it.
        prompt_tokens: token ids of the prompt.
        seed: seed of the random numbers that sampled it.
        completion: its tokens, at least one, with what the sampler noted of them.
        holder: the data-parallel rank that sampled it.

    Raises:
        ValueError: an empty response, a negative index, or no finish reason or an unknown one.
    """

    prompt_index: int
    sample: int
    prompt_id: str
    domain: str
    prompt_tokens: list[int]
    seed: int
    completion: Completion
    holder: int = 0

    def __post_init__(self) -> None:
        where = f"rollout of prompt {self.prompt_id!r}, sample {self.sample}"
        if not self.response_length:
            raise ValueError(f"{where}: the response has no tokens")
        for name in ("prompt_index", "sample"):
            if getattr(self, name) < 0:
                raise ValueError(f"{where}: {name} is {getattr(self, name)}, must not be negative")
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"{where}: finish reason {self.finish_reason!r} is none of {get_args(FinishReason)}")

    @property
    def response_length(self) -> int:
        """Number of response tokens."""
        return self.completion.length

    @property
    def finish_reason(self) -> FinishReason | None:
        """What ended it: "stop" for an end-of-sequence token, "length" for the length limit."""
        return self.completion.finish_reason


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout with its reward, the verifier's reason for it and what it is made of (`rewards.Reward.detail`).

    Raises:
        ValueError: a reward that is not finite.
    """

    rollout: Rollout
    reward: float
    reason: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"prompt {self.rollout.prompt_id!r}: the reward {self.reward} is not finite")
