"""Sums and means over each packed sequence of a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor


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
