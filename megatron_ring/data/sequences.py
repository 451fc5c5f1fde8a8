"""What is packed: one tokenized conversation or document, and one rollout as the policy loss sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor


class TokenSequence(NamedTuple):
    """Tokens of one sequence and, for each, whether predicting it counts in the loss (true or 1: it does)."""

    tokens: Sequence[int] | np.ndarray
    loss_mask: Sequence[int] | np.ndarray


@dataclass(frozen=True)
class PolicySequence:
    """One response with what the policy loss needs.

    `sampler_logprobs` (natural log) has one value per response token. The response tokens from `begin` up to `trained`
    carry loss. Those before are context, which another update of the step trains; the rest were cut by the token budget.
    `advantage` and `weight` hold for every trained token. Raises `ValueError` when the lengths do not agree. `routes`: the
    experts of the response tokens, [tokens, L, k], where they are known.
    """

    prompt_tokens: Sequence[int]
    response_tokens: Sequence[int]
    sampler_logprobs: Sequence[float]
    advantage: float
    weight: float
    trained: int
    routes: Tensor | None = None
    begin: int = 0

    def __post_init__(self) -> None:
        if not len(self.prompt_tokens):
            raise ValueError("a policy sequence needs a prompt: nothing predicts the first response token otherwise")
        if len(self.sampler_logprobs) != len(self.response_tokens):
            raise ValueError(
                f"{len(self.sampler_logprobs)} log-probs for {len(self.response_tokens)} response tokens: one each"
            )
        if not 0 <= self.trained <= len(self.response_tokens):
            raise ValueError(f"trained={self.trained} of {len(self.response_tokens)} response tokens")
        if not 0 <= self.begin <= self.trained:
            raise ValueError(f"begin={self.begin} of the first {self.trained} response tokens")

    @property
    def length(self) -> int:
        """Tokens that are packed: the prompt and the response up to its last trained token."""
        return len(self.prompt_tokens) + self.trained
