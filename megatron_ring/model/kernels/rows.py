"""Moving tokens to their experts and back: gathering rows by index, and summing gathered rows. No gradients of their own:
each is the other's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Places:
    """Where the T * k slots of tokens go when they are sorted by expert.

    Attributes:
        order: int64 [T * k], the slot (token * k + choice) at each sorted place.
        back: int64 [T, k], the sorted place of each slot.
        ends: int32 [E], where each expert's rows end.
    """

    order: torch.Tensor
    back: torch.Tensor
    ends: torch.Tensor


def sort_by_expert(experts_tk: torch.Tensor, num_experts: int) -> Places:
    """Sorted places of experts int64 [T, k], stable: an expert sees its tokens in their order. No host synchronisation."""
    flat = experts_tk.flatten()
    if flat.is_cuda:
        from megatron_ring.model.kernels import rows_triton

        order, back, ends = rows_triton.sort(flat, num_experts)
        return Places(order, back.view(experts_tk.shape), ends)
    # A short key is a short radix sort.
    ordered, order = flat.to(torch.uint8 if num_experts <= 256 else torch.int16).sort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    ends = torch.searchsorted(ordered, _numbers(num_experts, ordered.dtype, flat.device), right=True, out_int32=True)
    return Places(order, back.view(experts_tk.shape), ends)


@cache
def _numbers(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.arange(count, dtype=dtype, device=device)


def gather_rows(x_th: torch.Tensor, index_n: torch.Tensor) -> torch.Tensor:
    """x[index] for x [T, hidden] and index int64 [N] -> [N, hidden]."""
    if x_th.is_cuda:
        from megatron_ring.model.kernels import rows_triton

        return rows_triton.gather(x_th.contiguous(), index_n)
    return x_th.index_select(0, index_n)


def spread_rows(x_th: torch.Tensor, places: Places) -> torch.Tensor:
    """Each row of x [T, hidden] at the sorted places of its token's slots -> [T * k, hidden]."""
    if x_th.is_cuda:
        from megatron_ring.model.kernels import rows_triton

        return rows_triton.spread(x_th.contiguous(), places.back)
    return x_th.index_select(0, places.order // places.back.shape[1])


def combine_rows(y_nh: torch.Tensor, index_tk: torch.Tensor, *plus: torch.Tensor) -> torch.Tensor:
    """The sum over k of y[index[t, k]], plus up to two tensors [T, hidden] -> [T, hidden]. In fp32 on CUDA."""
    if y_nh.is_cuda:
        from megatron_ring.model.kernels import rows_triton

        return rows_triton.combine(y_nh.contiguous(), index_tk, tuple(other.contiguous() for other in plus))
    out = F.embedding_bag(index_tk, y_nh, mode="sum")
    for other in plus:
        out += other
    return out
