"""Causal self-attention over packed sequences, by the fastest kernel that takes the shape; which one, can be asked.

    cudnn   CUDA, 16 bit, equal lengths that need no rounding (below): cuDNN, one batch
    mixed   CUDA, 16 bit, uneven lengths: cuDNN for each long sequence, FlashAttention-2 for the short ones together
    flash   torch's FlashAttention-2 over cumulative lengths, for all
    short   CPU, up to 512 tokens: plain products over sequences of like length (kernels/short_attention.py)
    sdpa    everything else (long ones on the CPU, fp32 on CUDA): torch's SDPA, over sequences padded to the longest one

cuDNN's kernels are nearly twice as fast as FlashAttention-2 on Hopper, but torch's way to give them cumulative lengths
computes wrong gradients (torch 2.11, cuDNN 9.19; docs/LOG.md), and cuDNN plans anew for every shape, some 25 ms: lengths
are rounded up in steps of a sixteenth, over what follows in the packing, and zeros where it ends. Causality keeps what lies
behind a sequence out of it.

Suffixes: t tokens, s sequences, l positions in a sequence, h heads, g KV heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F

from megatron_ring.model.kernels.short_attention import LONGEST, Buckets, short_attention

KERNELS = ("cudnn", "mixed", "flash", "short", "sdpa")
CUDNN_MAX_HEAD = 128  # head dimension up to which cuDNN's backward pass is used
LONG = 1536  # tokens from which a sequence alone fills the GPU


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
        self.device = device
        self.equal = all(length == self.longest for length in self.lengths)
        self.kernel = kernel or self._fastest(device, dtype, head_dim)
        self._cells: torch.Tensor | None = None
        self._buckets: Buckets | None = None
        self._parts: list[_Part] | None = None

    def _fastest(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
        if device.type == "cpu" and self.longest <= LONGEST and dtype in (torch.float32, torch.float64):
            return "short"
        if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16) or head_dim % 8:
            return "sdpa"
        if head_dim > CUDNN_MAX_HEAD or self.longest < LONG:
            return "flash"
        return "cudnn" if self.equal and self.longest == rounded_up(self.longest) else "mixed"

    def __call__(self, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        """q [T, heads, d], k and v [T, KV heads, d], contiguous -> [T, heads, d], zeros at padding."""
        if self.tokens == 0:
            return q_thd * 0.0
        if self.kernel in ("mixed", "flash"):
            if self._parts is None:
                self._parts = list(self._split(self.kernel == "mixed"))
            return _Mixed.apply(q_thd, k_tgd, v_tgd, self._parts)
        if self.kernel == "short":
            if self._buckets is None:
                self._buckets = Buckets(self.lengths, q_thd.shape[1], k_tgd.shape[1], q_thd.dtype)
            return short_attention(q_thd, k_tgd, v_tgd, self._buckets)
        if self.kernel == "cudnn":
            out = _Cudnn.apply(*(self._as_batch(x) for x in (q_thd, k_tgd, v_tgd))).transpose(1, 2).flatten(0, 1)
        elif self.equal:
            out = _sdpa(*(self._as_batch(x) for x in (q_thd, k_tgd, v_tgd))).transpose(1, 2).flatten(0, 1)
        else:
            out = self._padded(q_thd, k_tgd, v_tgd)
        behind = q_thd.shape[0] - self.tokens
        return F.pad(out, (0, 0, 0, 0, 0, behind)) if behind else out

    def _as_batch(self, x_thd: torch.Tensor) -> torch.Tensor:
        """[S, heads, L, d], a view."""
        if x_thd.shape[0] > self.tokens:  # autograd copies the gradient of a slice into zeros, of one of everything too
            x_thd = x_thd[: self.tokens]
        return x_thd.view(len(self.lengths), self.longest, *x_thd.shape[1:]).transpose(1, 2)

    def _padded(self, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        if self._cells is None:
            cells = [s * self.longest + place for s, length in enumerate(self.lengths) for place in range(length)]
            self._cells = torch.tensor(cells, dtype=torch.int64).to(self.device, non_blocking=True)
        cells_t, rows = self._cells, len(self.lengths) * self.longest

        def spread(x_thd: torch.Tensor) -> torch.Tensor:
            padded = x_thd.new_zeros(rows, *x_thd.shape[1:]).index_copy(0, cells_t, x_thd[: self.tokens])
            return padded.view(len(self.lengths), self.longest, *x_thd.shape[1:]).transpose(1, 2)

        out = _sdpa(spread(q_thd), spread(k_tgd), spread(v_tgd))
        return out.transpose(1, 2).reshape(rows, *q_thd.shape[1:]).index_select(0, cells_t)

    def _split(self, long_ones: bool) -> Iterator[_Part]:
        """Long sequences one by one, and runs of short ones between them."""
        place, run = 0, _Part(0)
        for length in self.lengths:
            end = place + length
            if long_ones and length >= LONG:
                if run.lengths:
                    yield run.on(self.device)
                yield _Part(place, [length], rounded_up(length))
                run = _Part(end)
            else:
                run.lengths.append(length)
            place = end
        if run.lengths:
            yield run.on(self.device)


def rounded_up(length: int) -> int:
    """To a multiple of a sixteenth of the power of two below it: at most a sixteenth more."""
    step = max(64, 1 << max(0, length.bit_length() - 5))
    return -(-length // step) * step


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])


class _Part:
    """Consecutive sequences from token `first` that one kernel takes: a long one, computed as one of `computed` tokens; or
    short ones, with their cumulative lengths."""

    def __init__(self, first: int, lengths: list[int] | None = None, computed: int = 0) -> None:
        self.first, self.lengths, self.computed = first, lengths or [], computed
        self.starts: torch.Tensor | None = None

    def on(self, device: torch.device) -> _Part:
        starts = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
        self.starts = starts.to(device, non_blocking=True)
        return self

    @property
    def end(self) -> int:
        return self.first + sum(self.lengths)

    def as_batch(self, x_thd: torch.Tensor) -> torch.Tensor:
        """[1, heads, computed, d]: a view, but a copy with zeros behind where the packing ends before."""
        x_lhd = x_thd[self.first : self.first + self.computed]
        missing = self.computed - x_lhd.shape[0]
        return (F.pad(x_lhd, (0, 0, 0, 0, 0, missing)) if missing else x_lhd).transpose(0, 1)[None]


class _Mixed(torch.autograd.Function):
    """q [T, heads, d], k and v [T, KV heads, d], parts of them in turn -> [T, heads, d], zeros behind the last part."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, parts: list[_Part]) -> torch.Tensor:
        out = torch.empty_like(q)
        kept: list[torch.Tensor] = []
        for part in parts:
            if part.starts is None:
                found = _cudnn_forward(*map(part.as_batch, (q, k, v)))
                out[part.first : part.end] = found[0][0].transpose(0, 1)[: part.end - part.first]
            else:
                here = slice(part.first, part.end)
                longest = max(part.lengths)
                result, statistics, state, unused, _ = torch.ops.aten._flash_attention_forward(
                    q[here], k[here], v[here], part.starts, part.starts, longest, longest, 0.0, True, False
                )
                out[here] = result
                found = (result, statistics, state, unused)
            kept += found
        out[parts[-1].end :] = 0
        ctx.save_for_backward(q, k, v, *kept)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in (q, k, v)]
        for number, part in enumerate(ctx.parts):
            out, statistics, third, fourth = kept[4 * number : 4 * number + 4]
            size = part.end - part.first
            if part.starts is None:
                d_here = d_out.new_zeros(1, part.computed, *d_out.shape[1:])
                d_here[0, :size] = d_out[part.first : part.end]  # what lies behind has no part in the loss
                batch = map(part.as_batch, (q, k, v))
                whole = _cudnn_backward(d_here.transpose(1, 2), *batch, *kept[4 * number : 4 * number + 4])
                found = tuple(x[0].transpose(0, 1)[:size] for x in whole)
            else:
                here, longest = slice(part.first, part.end), max(part.lengths)
                found = torch.ops.aten._flash_attention_backward(
                    d_out[here].contiguous(), q[here], k[here], v[here], out, statistics, part.starts, part.starts,
                    longest, longest, 0.0, True, third, fourth,
                )  # fmt: skip
            for gradient, piece in zip(gradients, found, strict=True):
                gradient[part.first : part.end] = piece
        for gradient in gradients:
            gradient[ctx.parts[-1].end :] = 0
        return *gradients, None


class _Cudnn(torch.autograd.Function):
    """[S, heads, L, d], in memory tokens first, by cuDNN's causal attention."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        found = _cudnn_forward(q, k, v)
        ctx.save_for_backward(q, k, v, *found)
        return found[0]

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _cudnn_backward(d_out, *ctx.saved_tensors)


def _cudnn_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The result, its softmax statistics, and the random state that it did not use."""
    out, statistics, *_, seed, offset, _ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, 0.0, True, False
    )
    return out, statistics, seed, offset


def _cudnn_backward(
    d_out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, statistics: torch.Tensor,
    seed: torch.Tensor, offset: torch.Tensor,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    return torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        d_out, q, k, v, out, statistics, seed, offset, None, None, None, q.shape[2], k.shape[2], 0.0, True
    )
