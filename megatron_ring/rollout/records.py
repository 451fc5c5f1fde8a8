"""One record for each sampled response, checked when it is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from megatron_ring.rewards.interface import has_verdict, is_graded
from megatron_ring.sampler.completion import Completion, FinishReason

Key = tuple[int, int]
"""The prompt's position in the stream, and which of its responses: no two of a run have the same."""


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
    def key(self) -> Key:
        return self.prompt_index, self.sample

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
    """A rollout with its reward, the verifier's reason for it and what it is made of (`rewards.Reward.detail`); the share of
    its runs of tokens that it repeats (`hacking.repetition`).

    Raises:
        ValueError: a reward that is not finite.
    """

    rollout: Rollout
    reward: float
    reason: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    repetition: float = 0.0

    @property
    def key(self) -> Key:
        return self.rollout.key

    @property
    def has_verdict(self) -> bool:
        """As `rewards.interface.has_verdict`."""
        return has_verdict(self.detail)

    @property
    def is_graded(self) -> bool:
        """As `rewards.interface.is_graded`."""
        return is_graded(self.detail)

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"prompt {self.rollout.prompt_id!r}: the reward {self.reward} is not finite")
