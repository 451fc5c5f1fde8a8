"""GSPO (arXiv 2507.18071): one ratio for each response, the geometric mean of its tokens' ratios, clipped as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_ring.algorithm.grpo import GRPO
from megatron_ring.algorithm.objective import ObjectiveDefaults

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_ring.algorithm.tokens import PolicyTokens


class GSPO(GRPO):
    """L = -(1 / N) sum_i min(s_i A_i, clip(s_i) A_i), s_i = exp((1 / |y_i|) sum_t log r_it).

    A response may be split over calls of the loss, so s_i comes in from a pass over whole responses made before, without
    gradient (`sequences.sequence_log_ratios`). The gradient goes through the paper's token-level form (GSPO-token),

        s_it = sg[s_i] * pi_theta(y_it) / sg[pi_theta(y_it)],

    whose value is s_i and whose sum over a response has GSPO's gradient, as the advantage is the same for all its tokens.
    This holds as long as the weights are those of the first pass: one update for each pass.
    """

    name = "gspo"
    summary = "one ratio a response, mean over responses"
    defaults = ObjectiveDefaults(clip=3e-4, clip_high=4e-4)
    sequence_level = True

    def log_ratio(self, tokens: PolicyTokens) -> Tensor:
        if tokens.sequence_log_ratio is None:
            raise ValueError("GSPO needs sequence_log_ratio from a pass over whole responses")
        return tokens.sequence_log_ratio + (tokens.logprobs - tokens.logprobs.detach())
