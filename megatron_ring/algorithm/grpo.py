"""GRPO: the clipped policy loss, averaged per response first. The baseline that C3PO is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.objective import Objective


class GRPO(Objective):
    """L = (1 / N) sum_i (1 / |y_i|) sum_t l_it (arXiv 2402.03300, eq. 3)."""

    name = "grpo"
    summary = "mean over responses of the mean over their tokens"

    def weights(self, lengths: Sequence[int]) -> list[float]:
        total = sum(lengths)
        return [total / (len(lengths) * length) for length in lengths]
