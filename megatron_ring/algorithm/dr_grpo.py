"""Dr. GRPO: sums over tokens divided by a constant, so that neither a response's length nor its group's spread weighs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ring.algorithm.policy import Objective, response_counts


class DrGRPO(Objective):
    """L = (1 / N) sum_i (1 / M) sum_t l_it with a constant M (arXiv 2503.20783).

    Meant for advantages that are not divided by the standard deviation.

    Args:
        length_budget: M (tokens), such as the longest response that sampling allows. Raises `ValueError` below 1.
    """

    def __init__(self, length_budget: int) -> None:
        if length_budget < 1:
            raise ValueError(f"the length budget is {length_budget} tokens, must be at least 1")
        self.length_budget = length_budget

    def token_weights(self, lengths: Sequence[int]) -> Tensor:
        counts = response_counts(lengths)
        return torch.ones_like(counts) * counts.sum() / (len(lengths) * self.length_budget)
