"""DAPO: every token of the step has the same weight, clipping is wider above, groups without a signal are sampled anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ring.algorithm.policy import Objective, response_counts


class DAPO(Objective):
    """L = (1 / sum_i |y_i|) sum_i sum_t l_it over all responses of the step (arXiv 2503.14476).

    Its other parts are settings: `LossSettings.clip_high` above `clip_low`, and dynamic sampling, which keeps the groups
    that `advantages.groups_that_differ` marks.
    """

    def token_weights(self, lengths: Sequence[int]) -> Tensor:
        return torch.ones_like(response_counts(lengths))
