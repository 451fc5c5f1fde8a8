"""Dr. GRPO: sums over tokens divided by a constant, so that neither a response's length nor its group's spread weighs."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.objective import Objective, ObjectiveDefaults


class DrGRPO(Objective):
    """L = (1 / N) sum_i (1 / M) sum_t l_it with a constant M, `length_budget`, such as the longest response that sampling
    allows (arXiv 2503.20783). Meant for advantages that are not divided by the standard deviation."""

    name = "dr-grpo"
    summary = "sum over tokens, divided by a constant"
    defaults = ObjectiveDefaults(std=False)
    has_length_budget = True

    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [sum(lengths) / (len(lengths) * self.length_budget)] * len(lengths)
