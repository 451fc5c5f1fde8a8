"""DAPO: every token of the step has the same weight, clipping is wider above, groups without a signal are sampled anew."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.algorithm.objective import Objective, ObjectiveDefaults


class DAPO(Objective):
    """L = (1 / sum_i |y_i|) sum_i sum_t l_it over all responses of the step (arXiv 2503.14476).

    Its other parts are settings: `LossSettings.clip_high` above `clip_low`, and dynamic sampling, which keeps the groups
    that `advantages.groups_that_differ` marks.
    """

    name = "dapo"
    summary = "mean over tokens"
    defaults = ObjectiveDefaults(clip_high=0.28, dynamic_sampling=True)

    def weights(self, lengths: Sequence[int]) -> list[float]:
        return [1.0] * len(lengths)
