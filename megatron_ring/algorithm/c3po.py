"""C3PO: the clipped policy loss over a fixed number of tokens, each with the same weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ring.algorithm.policy import Objective, response_counts


class C3PO(Objective):
    """L = (1 / Phi) sum_{t in Psi} l_t with |Psi| = Phi (Ring-lite report, arXiv 2506.14731).

    Psi is what `budget.select_budget` selects, and T = Phi where the step holds as many tokens.
    """

    def token_weights(self, lengths: Sequence[int]) -> Tensor:
        return torch.ones_like(response_counts(lengths))
