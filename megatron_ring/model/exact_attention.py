"""Attention for --exact: what its programs are to do, made once for all layers, and the training forward's gradient.

Forward by `kernels/exact_attention_triton.py`; the backward pass has no part in log-probabilities and takes the fast kernels
of `attention_kernels`, which compute their own forward again for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_ring.model.attention_kernels import PackedAttention
from megatron_ring.model.kernels import exact_attention_triton as kernel


@dataclass(frozen=True)
class Asked:
    """The queries of a forward pass, as `exact_attention_triton.attend` wants them."""

    tiles: torch.Tensor
    sequences: torch.Tensor
    rows: kernel.Rows

    @classmethod
    def of_chunks(
        cls, ends: Sequence[int], counts: Sequence[int], group: int, device: torch.device, rows: kernel.Rows = kernel.MANY
    ) -> Asked:
        """The last counts[s] positions of sequences of ends[s] tokens; their queries lie one after another. `group`:
        queries of a KV head."""
        step = kernel.positions_of(rows, group)
        tiles, sequences, row = [], [], 0
        for index, (end, count) in enumerate(zip(ends, counts, strict=True)):
            first = end - count
            tiles += [(index, place) for place in range(first // step * step, end if count else 0, step)]
            sequences.append((row, first, end))
            row += count
        tiles.sort(key=lambda tile: -tile[1])  # those with the longest context first: short ones fill the gaps
        tiles_p2 = torch.tensor(tiles, dtype=torch.int32).view(-1, 2).to(device, non_blocking=True)
        sequences_s3 = torch.tensor(sequences, dtype=torch.int32).view(-1, 3).to(device, non_blocking=True)
        return cls(tiles_p2, sequences_s3, rows)

    @classmethod
    def of_decoding(cls, lengths: torch.Tensor, group: int) -> Asked:
        """One query for each sequence, at the last of its `lengths` int [N] positions; 0: none. Without the host, so that a
        CUDA graph can hold it."""
        step = kernel.positions_of(kernel.ONE, group)
        index, last = torch.arange(lengths.shape[0], device=lengths.device), lengths - 1
        tiles = torch.stack((index, last.clamp(min=0) // step * step), dim=1).int()
        return cls(tiles, torch.stack((index, last, lengths), dim=1).int(), kernel.ONE)


def attend_packed(
    asked: Asked, usual: PackedAttention, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor
) -> torch.Tensor:
    """q [T, heads, d], k and v [T, KV heads, d] of packed sequences -> [T, heads, d], zeros at padding. `usual` computes the
    gradient."""
    return _Packed.apply(q_thd, k_tgd, v_tgd, asked, usual)


def attend_paged(
    asked: Asked, q_thd: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, block_table: torch.Tensor
) -> torch.Tensor:
    """q [T, heads, d]; keys and values [pages, page_size, KV heads, d], these tokens included -> [T, heads, d]."""
    return kernel.attend(q_thd, keys, values, asked.tiles, asked.sequences, asked.rows, block_table)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor, asked: Asked, usual: PackedAttention
    ) -> torch.Tensor:
        ctx.usual = usual
        ctx.save_for_backward(q_thd, k_tgd, v_tgd)
        return kernel.attend(q_thd, k_tgd, v_tgd, asked.tiles, asked.sequences, asked.rows)

    @staticmethod
    def backward(ctx: Any, d_thd: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = ctx.usual(*inputs)
        return *torch.autograd.grad(out, inputs, d_thd), None, None
