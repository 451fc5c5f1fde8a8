"""Splits a fused query-key-value product into its three parts and rotates queries and keys, both ways in one pass; keys and
values also straight to their places in a KV cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin


@triton.jit
def _rope_split(  # type: ignore[no-untyped-def]
    qkv_ptr, q_ptr, k_ptr, v_ptr, cos_ptr, sin_ptr, slots_ptr, table_stride,
    GROUPS: tl.constexpr, QUERIES: tl.constexpr, HALF: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr, SLOTS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    begin(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    pair = tl.arange(0, HALF_BLOCK)[None, :]
    per_group: tl.constexpr = QUERIES + 2
    group, part = head // per_group, head % per_group
    real = (head < GROUPS * per_group) & (pair < HALF)
    is_q, is_k, is_v = real & (part < QUERIES), real & (part == QUERIES), real & (part == QUERIES + 1)
    packed = qkv_ptr + (token * (GROUPS * per_group) + head) * (2 * HALF) + pair
    at_q = q_ptr + (token * (GROUPS * QUERIES) + group * QUERIES + part) * (2 * HALF) + pair
    place = tl.load(slots_ptr + token) if SLOTS else token
    at_k = k_ptr + (place * GROUPS + group) * (2 * HALF) + pair
    at_v = v_ptr + (place * GROUPS + group) * (2 * HALF) + pair
    cos = tl.load(cos_ptr + token * table_stride + pair, mask=pair < HALF, other=0.0)
    sin = tl.load(sin_ptr + token * table_stride + pair, mask=pair < HALF, other=0.0)
    if BACKWARD:
        first = tl.load(at_q, mask=is_q, other=0.0).to(tl.float32) + tl.load(at_k, mask=is_k, other=0.0).to(tl.float32)
        second = tl.load(at_q + HALF, mask=is_q, other=0.0).to(tl.float32)
        second += tl.load(at_k + HALF, mask=is_k, other=0.0).to(tl.float32)
        kept = tl.load(at_v, mask=is_v, other=0.0).to(tl.float32)
        kept_second = tl.load(at_v + HALF, mask=is_v, other=0.0).to(tl.float32)
        out = first * cos + second * sin + kept
        out_second = second * cos - first * sin + kept_second
        tl.store(packed, out.to(qkv_ptr.dtype.element_ty), mask=real)
        tl.store(packed + HALF, out_second.to(qkv_ptr.dtype.element_ty), mask=real)
    else:
        first = tl.load(packed, mask=real, other=0.0).to(tl.float32)
        second = tl.load(packed + HALF, mask=real, other=0.0).to(tl.float32)
        # Said which products are rounded: left to the compiler, `decode_triton`, which does the same, rounds others.
        turned = tl.fma(first, tl.broadcast_to(cos, first.shape), second * -sin).to(q_ptr.dtype.element_ty)
        turned_second = tl.fma(first, tl.broadcast_to(sin, first.shape), second * cos).to(q_ptr.dtype.element_ty)
        tl.store(at_q, turned, mask=is_q)
        tl.store(at_q + HALF, turned_second, mask=is_q)
        tl.store(at_k, turned, mask=is_k)
        tl.store(at_k + HALF, turned_second, mask=is_k)
        tl.store(at_v, first.to(v_ptr.dtype.element_ty), mask=is_v)
        tl.store(at_v + HALF, second.to(v_ptr.dtype.element_ty), mask=is_v)


def split(
    qkv: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    backward: bool, slots: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Fills q [T, heads, d], k, v [T, groups, d] from qkv [T, groups, queries + 2, d], or with `backward` the gradient of
    qkv from theirs. cos, sin fp32 [T, 1, d], both halves alike. All contiguous. With int64 [T] `slots`, the rows of k and v
    [rows, groups, d] that are filled."""
    tokens, groups, per_group, d = qkv.shape
    if tokens == 0:
        return
    _rope_split[(tokens,)](
        qkv, q, k, v, cos, sin, slots, cos.stride(0), GROUPS=groups, QUERIES=per_group - 2, HALF=d // 2,
        HEADS_BLOCK=triton.next_power_of_2(groups * per_group), HALF_BLOCK=triton.next_power_of_2(d // 2),
        BACKWARD=backward, SLOTS=slots is not None, num_warps=4, **launch_options(),
    )  # fmt: skip
