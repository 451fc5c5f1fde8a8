"""What the sampler hands to training: one record per response, checked when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

FinishReason = Literal["stop", "stop_token", "stop_string", "repetition", "length"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response with what training needs to know about how it was sampled.

    Attributes:
        prompt_index: position of the prompt in the run's stream; the K responses of a group share it.
        sample: which of the K responses this is, from 0.
        prompt_id: the `id` of the prompt in its file.
        domain: the domain whose verifier scores it.
        prompt_tokens: token ids of the prompt.
        response_tokens: token ids that were sampled, the end-of-sequence token included where there is one; not empty.
        logprobs: the sampler's log-probability of each response token, in nats, at the sampling temperature.
        entropies: entropy of the sampler's distribution at each response token, in nats.
        finish_reason: "stop" at an end-of-sequence token, "length" when the length limit cut it, or what else ended it.
        versions: spans [weights version, tokens sampled under it], in order; a version is the number of updates before.
        seed: seed of the random numbers that sampled it.
        routes: the experts that drew each token, as the sampler noted them (`sampler.requests.Completion`); of this
            process's pipeline stage.

    Raises:
        ValueError: an empty response, lists whose lengths differ, a negative index or an unknown finish reason.
    """

    prompt_index: int
    sample: int
    prompt_id: str
    domain: str
    prompt_tokens: list[int]
    response_tokens: list[int]
    logprobs: list[float]
    entropies: list[float]
    finish_reason: FinishReason
    versions: list[list[int]]
    seed: int
    routes: bytes = b""

    def __post_init__(self) -> None:
        where = f"rollout of prompt {self.prompt_id!r}, sample {self.sample}"
        if not self.response_tokens:
            raise ValueError(f"{where}: the response has no tokens")
        for name in ("logprobs", "entropies"):
            length = len(getattr(self, name))
            if length != len(self.response_tokens):
                raise ValueError(f"{where}: {length} {name} for {len(self.response_tokens)} response tokens")
        if sum(count for _, count in self.versions) != len(self.response_tokens):
            raise ValueError(f"{where}: versions {self.versions} for {len(self.response_tokens)} response tokens")
        for name in ("prompt_index", "sample"):
            if getattr(self, name) < 0:
                raise ValueError(f"{where}: {name} is {getattr(self, name)}, must not be negative")
        if self.finish_reason not in get_args(FinishReason):
            raise ValueError(f"{where}: finish reason {self.finish_reason!r} is none of {get_args(FinishReason)}")

    @property
    def response_length(self) -> int:
        """Number of response tokens."""
        return len(self.response_tokens)


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
