"""Causal self-attention over packed sequences, by the fastest kernel that takes the shape; which one, can be asked.

    cudnn          equal lengths, CUDA, 16-bit: cuDNN through torch's SDPA operators, as a batch
    cudnn-varlen   uneven lengths, CUDA, 16-bit: the same kernels over cumulative lengths, nothing is padded
    flash-varlen   the same through torch's FlashAttention-2, where cuDNN refuses the shape
    sdpa           everything else (CPU, fp32): torch's SDPA, over sequences padded to the longest one

Suffixes: t tokens, s sequences, l positions in a sequence, h heads, g KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

KERNELS = ("cudnn", "cudnn-varlen", "flash-varlen", "sdpa")
CUDNN_MAX_HEAD = 128  # head dimension up to which cuDNN's backward is used; multiples of 8


class PackedAttention:
    """The attention of one packing of sequences; `kernel` names what computes it.

    Args:
        lengths: tokens of each sequence, on the host; they lie one after another from token 0, padding may follow.
        device, dtype, head_dim: of the queries.
        kernel: one of KERNELS, or None for the fastest that takes the shape.
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device, dtype: torch.dtype, head_dim: int, kernel: str | None = None
    ) -> None:
        self.lengths = [length for length in lengths if length]
        self.longest = max(self.lengths, default=0)
        self.tokens = sum(self.lengths)
        self.equal = all(length == self.longest for length in self.lengths)
        self.device = device
        self.kernel = kernel or self._fastest(device, dtype, head_dim)
        self._starts: torch.Tensor | None = None
        self._cells: torch.Tensor | None = None

    def _fastest(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim % 8:
            return "sdpa"
        if head_dim > CUDNN_MAX_HEAD:
            return "flash-varlen"
        return "cudnn" if self.equal else "cudnn-varlen"

    def __call__(self, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        """q [T, heads, d], k and v [T, KV heads, d], contiguous -> [T, heads, d], zeros at padding."""
        if self.tokens == 0:
            return q_thd * 0.0
        if self.kernel == "sdpa":
            out = self._batched(q_thd, k_tgd, v_tgd) if self.equal else self._padded(q_thd, k_tgd, v_tgd)
        elif self.kernel == "cudnn":
            out = _Cudnn.apply(*(self._as_batch(x) for x in (q_thd, k_tgd, v_tgd))).transpose(1, 2).flatten(0, 1)
        else:
            function = _CudnnVarlen if self.kernel == "cudnn-varlen" else _FlashVarlen
            real = (x[: self.tokens] for x in (q_thd, k_tgd, v_tgd))
            out = function.apply(*real, self.starts(), self._bound())
        behind = q_thd.shape[0] - self.tokens
        return F.pad(out, (0, 0, 0, 0, 0, behind)) if behind else out

    def _as_batch(self, x_thd: torch.Tensor) -> torch.Tensor:
        """[S, heads, L, d], a view."""
        return x_thd[: self.tokens].view(len(self.lengths), self.longest, *x_thd.shape[1:]).transpose(1, 2)

    def _batched(self, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        q, k, v = (self._as_batch(x) for x in (q_thd, k_tgd, v_tgd))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)

    def _padded(self, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        if self._cells is None:
            cells = [s * self.longest + place for s, length in enumerate(self.lengths) for place in range(length)]
            self._cells = torch.tensor(cells, dtype=torch.int64).to(self.device, non_blocking=True)
        cells_t, rows = self._cells, len(self.lengths) * self.longest

        def spread(x_thd: torch.Tensor) -> torch.Tensor:
            padded = x_thd.new_zeros(rows, *x_thd.shape[1:]).index_copy(0, cells_t, x_thd[: self.tokens])
            return padded.view(len(self.lengths), self.longest, *x_thd.shape[1:]).transpose(1, 2)

        q, k, v = spread(q_thd), spread(k_tgd), spread(v_tgd)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).reshape(rows, *q_thd.shape[1:]).index_select(0, cells_t)

    def starts(self) -> torch.Tensor:
        """int32 [S' + 1] on the device: where sequences begin, and the last one's end. cuDNN plans anew for every number of
        sequences: it is rounded up with empty ones."""
        if self._starts is None:
            count = len(self.lengths)
            rounded = max(8, 1 << (count - 1).bit_length()) if self.kernel == "cudnn-varlen" else count
            starts = [0]
            for length in self.lengths + [0] * (rounded - count):
                starts.append(starts[-1] + length)
            self._starts = torch.tensor(starts, dtype=torch.int32).to(self.device, non_blocking=True)
        return self._starts

    def _bound(self) -> int:
        """An upper bound of the lengths. cuDNN plans anew for each: it is rounded up to a power of two."""
        return 1 << (self.longest - 1).bit_length() if self.kernel == "cudnn-varlen" else self.longest


class _Cudnn(torch.autograd.Function):
    """[S, heads, L, d] by cuDNN's causal attention. Gradients are laid out as their tensors are: tokens first."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, statistics, *_, seed, offset, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, statistics, seed, offset)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, out, statistics, seed, offset = ctx.saved_tensors
        return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            d_out, q, k, v, out, statistics, seed, offset, None, None, None, q.shape[2], k.shape[2], 0.0, True
        )


class _CudnnVarlen(torch.autograd.Function):
    """[T, heads, d] by cuDNN's causal attention over cumulative lengths."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, bound: int
    ) -> torch.Tensor:
        out, statistics, *_, seed, offset, _ = torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, starts, starts, bound, bound, True, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, statistics, seed, offset, starts)
        ctx.bound = bound
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, statistics, seed, offset, starts = ctx.saved_tensors
        gradients = torch.ops.aten._cudnn_attention_backward(
            d_out.contiguous(), q, k, v, out, statistics, seed, offset, None, starts, starts, ctx.bound, ctx.bound, 0.0, True
        )
        return *gradients, None, None


class _FlashVarlen(torch.autograd.Function):
    """[T, heads, d] by torch's FlashAttention-2 over cumulative lengths."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, bound: int
    ) -> torch.Tensor:
        out, statistics, state, unused, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, bound, bound, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, statistics, state, unused, starts)
        ctx.bound = bound
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, statistics, state, unused, starts = ctx.saved_tensors
        gradients = torch.ops.aten._flash_attention_backward(
            d_out.contiguous(), q, k, v, out, statistics, starts, starts, ctx.bound, ctx.bound, 0.0, True, state, unused
        )
        return *gradients, None, None
