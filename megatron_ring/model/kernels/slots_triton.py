"""The token-slots of few tokens sorted by expert in one kernel, and beside that activations split into parts of e4m3."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin
from megatron_ring.model.kernels.few_fp8_triton import Split, split_row


@triton.jit
def _sort_slots(  # type: ignore[no-untyped-def]
    experts_ptr, idle_ptr, order_ptr, back_ptr, ends_ptr, made_ptr, x_ptr, parts_ptr, scales_ptr, slots, hidden, columns,
    E: tl.constexpr, K: tl.constexpr, IDLE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, ROW: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The first E programs sort, one for each expert. With PARTS above 0 there is one more for each token."""
    begin(DEPENDENT)
    expert = tl.program_id(0)
    if PARTS > 0 and expert >= E:
        split_row(x_ptr, parts_ptr, scales_ptr, expert - E, hidden, columns, PARTS, ROW)
        return
    slot = tl.arange(0, BLOCK)
    chosen = tl.load(experts_ptr + slot, mask=slot < slots, other=2147483647).to(tl.int32)
    if IDLE:
        chosen = tl.where(tl.load(idle_ptr + slot // K, mask=slot < slots, other=1) != 0, -1, chosen)
    here = chosen == expert
    before = tl.sum(((chosen >= 0) & (chosen < expert)).to(tl.int32), 0)
    place = before + tl.cumsum(here.to(tl.int32), 0) - 1
    tl.store(order_ptr + place, slot, mask=here)
    tl.store(back_ptr + slot, place, mask=here)
    tl.store(ends_ptr + expert, before + tl.sum(here.to(tl.int32), 0))
    tl.store(made_ptr + expert, 0)
    if expert == 0:  # slots of experts that are not here, and of idle tokens
        tl.store(back_ptr + slot, -1, mask=(slot < slots) & ((chosen < 0) | (chosen >= E)))


class Slots(NamedTuple):
    """int32: the slot at each sorted place [N]; the place of each slot [T, k], -1 where it has none; where an expert's rows
    end [E]; and zeros [E], to count an expert's programs of the first product, once (None: the second waits for all)."""

    order: torch.Tensor
    back: torch.Tensor
    ends: torch.Tensor
    made: torch.Tensor | None


def sort_slots(
    experts_tk: torch.Tensor, num_experts: int, idle_t: torch.Tensor | None = None, split: Split | None = None
) -> Slots:
    """Stable, of experts int64 [T, k]. No place have slots of an expert that is none of 0..E-1, and of tokens that are idle,
    bool [T]. `split` is filled."""
    slots, device = experts_tk.numel(), experts_tk.device
    order = torch.empty(slots, dtype=torch.int32, device=device)
    back = torch.empty(experts_tk.shape, dtype=torch.int32, device=device)
    ends, made = torch.empty(2, num_experts, dtype=torch.int32, device=device).unbind()
    block = triton.next_power_of_2(slots)  # that each program looks through
    # Microseconds with 4, 8, 16 and 32 warps: 512 slots 1.4, 1.5, 1.3, 1.7; 4,096 3.6, 3.1, 3.9, 5.3; 16,384 33, 12, 14, 19.
    warps = max(4 if block < 2048 else 8, min(32, block // 2048))
    idle = experts_tk if idle_t is None else idle_t.view(torch.uint8)
    x, parts, scales = split or (experts_tk, experts_tk, experts_tk)
    programs = num_experts if split is None else num_experts + x.shape[0]
    columns = parts.shape[-1]
    _sort_slots[(programs,)](
        experts_tk, idle, order, back, ends, made, x, parts, scales, slots, x.shape[1], columns, E=num_experts,
        K=experts_tk.shape[1], IDLE=idle_t is not None, BLOCK=block, PARTS=0 if split is None else parts.shape[1],
        ROW=triton.next_power_of_2(columns), num_warps=warps, **launch_options(),
    )  # fmt: skip
    return Slots(order, back, ends, made)
