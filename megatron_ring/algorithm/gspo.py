"""GSPO (arXiv 2507.18071): one ratio for each response, the geometric mean of its tokens' ratios, clipped as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ring.algorithm.grpo import GRPO
from megatron_ring.algorithm.policy import PolicyTokens


class GSPO(GRPO):
    """L = -(1 / N) sum_i min(s_i A_i, clip(s_i) A_i), s_i = exp((1 / |y_i|) sum_t log r_it).

    A response may be split over calls of `loss`, so s_i comes in from a pass over whole responses made before, without
    gradient (`sequence_log_ratios`). The gradient goes through the paper's token-level form (GSPO-token),

        s_it = sg[s_i] * pi_theta(y_it) / sg[pi_theta(y_it)],

    whose value is s_i and whose sum over a response has GSPO's gradient, as the advantage is the same for all its tokens.
    This holds as long as the weights are those of the first pass: one update for each pass.
    """

    sequence_level = True

    def log_ratio(self, tokens: PolicyTokens) -> Tensor:
        if tokens.sequence_log_ratio is None:
            raise ValueError("GSPO needs sequence_log_ratio from a pass over whole responses")
        return tokens.sequence_log_ratio + (tokens.logprobs - tokens.logprobs.detach())


def sequence_sums(values: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum of `values` [T] over the masked tokens of each packed sequence.

    Args:
        mask: [T] bool; values elsewhere are never used.
        cu_seqlens: int [S + 1], borders of the S sequences, from 0 to T.

    Returns:
        [S], in the dtype of `values`, on their device.
    """
    owner = torch.repeat_interleave(cu_seqlens.diff().long())
    return values.new_zeros(cu_seqlens.numel() - 1).index_add(0, owner, torch.where(mask, values, 0.0))


def sequence_log_ratios(log_ratio: Tensor, mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """log s of every token's sequence: the mean of `log_ratio` over the sequence's masked tokens, [T]; 0 outside the mask.

    Arguments as of `sequence_sums`, on a whole micro-batch.
    """
    sums, counts = (sequence_sums(values, mask, cu_seqlens) for values in (log_ratio, mask.to(log_ratio.dtype)))
    return torch.where(mask, torch.repeat_interleave(sums / counts.clamp(min=1), cu_seqlens.diff().long()), 0.0)
