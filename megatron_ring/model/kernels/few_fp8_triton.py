"""Routed experts in FP8: the products of `few_tokens_triton` with weights that are widened on their way to the tensor cores,
and whole matrices made wide.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WORDS = tl.constexpr(32)  # of a block, that a program has at a time: see kernels/fp8.py


def _widening(byte: int) -> tl.constexpr:
    """Of two words the values of one byte, as two of bf16. Triton's own conversion takes two instructions of 16 a clock for
    each value, which is longer than it takes to read them. Here exponent and mantissa go to the place of bf16's, which makes
    the value 2^-120 of what it is, subnormals too: bits 14..11 of a half of `u` to 10..7, and 10..8 to 6..4."""
    select = (4 + byte) << 12 | (4 + byte) << 8 | byte << 4 | byte
    return tl.constexpr(f"""{{
.reg .b32 u, v, up, none;
mov.b32 up, 0x7b807b80;
mov.b32 none, 0x80008000;
prmt.b32 u, $1, $2, {select:#06x};
shr.u32 v, u, 4;
and.b32 v, v, 0x07f007f0;
lop3.b32 u, u, 0x80008000, v, 0xea;
fma.rn.bf16x2 $0, u, up, none;
}}""")


_FIRST, _SECOND, _THIRD, _FOURTH = (_widening(byte) for byte in range(4))


@triton.jit
def _quarter(w, like, BYTE: tl.constexpr, PTX: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values of a byte of each word, in the type of `like`."""
    # One return: Triton compiles every one that it meets, and they must agree in type.
    if not PTX:
        value = ((w >> (8 * BYTE)) & 255).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(like.dtype)
    elif BYTE == 0:
        value = tl.inline_asm_elementwise(_FIRST, "=r,r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif BYTE == 1:
        value = tl.inline_asm_elementwise(_SECOND, "=r,r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    elif BYTE == 2:
        value = tl.inline_asm_elementwise(_THIRD, "=r,r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        value = tl.inline_asm_elementwise(_FOURTH, "=r,r,r", [w], dtype=tl.bfloat16, is_pure=True, pack=2)
    return value


@triton.jit
def _x(at, depth, columns, real, BYTE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns of rows that belong to a byte of the words from `depth` on."""
    first = 4 * depth + BYTE * WORDS
    inside = tl.arange(0, WORDS) < columns - first
    return tl.load(at + first, mask=real[None, :] & inside[:, None], other=0.0)


@triton.jit
def _gate_up(  # type: ignore[no-untyped-def]
    x_ptr, order_ptr, ends_ptr, weights_ptr, w_ptr, scales_ptr, out_ptr, hidden, width, words,
    K: tl.constexpr, PTX: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    f = tl.program_id(1) * TILE + tl.arange(0, TILE)
    word = tl.arange(0, WORDS)
    inside = (f < width)[:, None]
    gate_at = w_ptr + (expert * (2 * width) + f[:, None]) * words + word[None, :]
    up_at = gate_at + width.to(tl.int64) * words
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        slot = tl.load(order_ptr + row, mask=real, other=0)
        x_at = x_ptr + (slot // K).to(tl.int64)[None, :] * hidden + word[:, None]
        gate = tl.zeros([TILE, ROWS], tl.float32)
        up = tl.zeros([TILE, ROWS], tl.float32)
        for depth in range(0, words, WORDS):
            g = tl.load(gate_at + depth, mask=inside, other=0)
            u = tl.load(up_at + depth, mask=inside, other=0)
            x = _x(x_at, depth, hidden, real, 0)
            gate = tl.dot(_quarter(g, x, 0, PTX), x, gate, input_precision="ieee")
            up = tl.dot(_quarter(u, x, 0, PTX), x, up, input_precision="ieee")
            x = _x(x_at, depth, hidden, real, 1)
            gate = tl.dot(_quarter(g, x, 1, PTX), x, gate, input_precision="ieee")
            up = tl.dot(_quarter(u, x, 1, PTX), x, up, input_precision="ieee")
            x = _x(x_at, depth, hidden, real, 2)
            gate = tl.dot(_quarter(g, x, 2, PTX), x, gate, input_precision="ieee")
            up = tl.dot(_quarter(u, x, 2, PTX), x, up, input_precision="ieee")
            x = _x(x_at, depth, hidden, real, 3)
            gate = tl.dot(_quarter(g, x, 3, PTX), x, gate, input_precision="ieee")
            up = tl.dot(_quarter(u, x, 3, PTX), x, up, input_precision="ieee")
        scale_at = scales_ptr + expert * (2 * width) + f
        gate *= tl.load(scale_at, mask=f < width, other=0.0)[:, None]
        up *= tl.load(scale_at + width, mask=f < width, other=0.0)[:, None]
        # As in training, where the products are rounded before SwiGLU reads them.
        gate = gate.to(x_ptr.dtype.element_ty).to(tl.float32)
        up = up.to(x_ptr.dtype.element_ty).to(tl.float32)
        weight = tl.load(weights_ptr + slot, mask=real, other=0.0)
        out = gate * tl.sigmoid(gate) * up * weight[None, :]
        out_at = out_ptr + row.to(tl.int64)[None, :] * width + f[:, None]
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=real[None, :] & inside)


@triton.jit
def _down(  # type: ignore[no-untyped-def]
    x_ptr, ends_ptr, w_ptr, scales_ptr, out_ptr, hidden, width, words,
    PTX: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    end = tl.load(ends_ptr + expert)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0) + tl.program_id(0) * ROWS
    h = tl.program_id(1) * TILE + tl.arange(0, TILE)
    word = tl.arange(0, WORDS)
    inside = (h < hidden)[:, None]
    w_at = w_ptr + (expert * hidden + h[:, None]) * words + word[None, :]
    for first in range(start, end, ROWS * tl.num_programs(0)):
        row = first + tl.arange(0, ROWS)
        real = row < end
        x_at = x_ptr + row.to(tl.int64)[None, :] * width + word[:, None]
        total = tl.zeros([TILE, ROWS], tl.float32)
        for depth in range(0, words, WORDS):
            w = tl.load(w_at + depth, mask=inside, other=0)
            x = _x(x_at, depth, width, real, 0)
            total = tl.dot(_quarter(w, x, 0, PTX), x, total, input_precision="ieee")
            x = _x(x_at, depth, width, real, 1)
            total = tl.dot(_quarter(w, x, 1, PTX), x, total, input_precision="ieee")
            x = _x(x_at, depth, width, real, 2)
            total = tl.dot(_quarter(w, x, 2, PTX), x, total, input_precision="ieee")
            x = _x(x_at, depth, width, real, 3)
            total = tl.dot(_quarter(w, x, 3, PTX), x, total, input_precision="ieee")
        total *= tl.load(scales_ptr + expert * hidden + h, mask=h < hidden, other=0.0)[:, None]
        out_at = out_ptr + row.to(tl.int64)[None, :] * hidden + h[:, None]
        tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=real[None, :] & inside)


@triton.jit
def _wide(words_ptr, scales_ptr, out_ptr, rows, columns, words, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    real = (row < rows)[:, None]
    w = tl.load(words_ptr + row[:, None] * words + word[None, :], mask=real, other=0)
    scale = tl.load(scales_ptr + row, mask=row < rows, other=0.0)[:, None]
    column = 4 * tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    out_at = out_ptr + row[:, None] * columns + column[None, :]
    for byte in tl.static_range(4):
        value = ((w >> (8 * byte)) & 255).to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float32) * scale
        mask = real & (column + byte * WORDS < columns)[None, :]
        tl.store(out_at + byte * WORDS, value.to(out_ptr.dtype.element_ty), mask=mask)


def wide(words: torch.Tensor, scales: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """The weights [..., b, columns] that words int32 [..., b, w] and scales fp32 [..., b] stand for, contiguous."""
    out = torch.empty(*scales.shape, columns, dtype=dtype, device=words.device)
    rows, of_row = scales.numel(), words.shape[-1]
    _wide[(triton.cdiv(rows, 64), of_row // 32)](words, scales, out, rows, columns, of_row, TILE=64)
    return out
