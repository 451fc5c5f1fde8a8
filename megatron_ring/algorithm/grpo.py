"""GRPO: the clipped policy loss, averaged per response first. The baseline that C3PO is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from megatron_ring.algorithm.policy import Objective, response_counts


class GRPO(Objective):
    """L = (1 / N) sum_i (1 / |y_i|) sum_t l_it (arXiv 2402.03300, eq. 3)."""

    def token_weights(self, lengths: Sequence[int]) -> Tensor:
        counts = response_counts(lengths)
        return counts.sum() / (len(lengths) * counts)
