"""What a decoding turn does with its rows' numbers before the layers and behind the draw, in a kernel each."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from megatron_ring.sampler.cache import PagedCache


class Places(NamedTuple):
    """Of N rows: their part of the block table int32 [N, columns]; int64 [N] the slot of the token that is fed, 0 for idle
    rows, and the row's tokens with it; bool [N] whether it is idle."""

    table: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    idle: torch.Tensor


@triton.jit
def _find_places(  # type: ignore[no-untyped-def]
    table_ptr, rows_ptr, positions_ptr, writable_ptr, out_ptr, slots_ptr, lengths_ptr, idle_ptr, stride, columns, page,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    position, writable = tl.load(positions_ptr + n), tl.load(writable_ptr + n)
    row_at = table_ptr + tl.load(rows_ptr + n) * stride
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        tl.store(out_ptr + n.to(tl.int64) * columns + column, tl.load(row_at + column, mask=inside), mask=inside)
    idle = position >= writable
    slot = tl.load(row_at + tl.minimum(position // page, columns - 1)).to(tl.int64) * page + position % page
    tl.store(slots_ptr + n, tl.where(idle, 0, slot))
    tl.store(lengths_ptr + n, tl.minimum(position + 1, writable))
    tl.store(idle_ptr + n, idle.to(tl.uint8))


def find_places(
    cache: PagedCache, rows: torch.Tensor, positions: torch.Tensor, writable: torch.Tensor, columns: int
) -> Places:
    """Of int64 [N] rows of the block table, positions that are fed, and positions from where on nothing may be written."""
    rows, positions, writable = rows.contiguous(), positions.contiguous(), writable.contiguous()
    n, device = rows.numel(), rows.device
    table = torch.empty(n, columns, dtype=cache.table.dtype, device=device)
    slots, lengths = (torch.empty(n, dtype=torch.int64, device=device) for _ in range(2))
    idle = torch.empty(n, dtype=torch.uint8, device=device)
    block = min(1024, triton.next_power_of_2(columns))
    _find_places[(n,)](
        cache.table, rows, positions, writable, table, slots, lengths, idle, cache.table.stride(0), columns,
        cache.page_size, BLOCK=block, num_warps=max(1, min(4, block // 128)),
    )  # fmt: skip
    return Places(table, slots, lengths, idle.view(torch.bool))


@triton.jit
def _go_on(  # type: ignore[no-untyped-def]
    found_ptr, drawn_ptr, turn_ptr, tokens_ptr, positions_ptr, writable_ptr, counts_ptr, eos, size, most,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: what all rows have drawn goes to this turn's place, and they are ready for the next."""
    turn = tl.load(turn_ptr)
    tl.debug_barrier()  # before one part of the program counts on
    for start in range(0, size, BLOCK):
        n = start + tl.arange(0, BLOCK)
        inside = n < size
        for column in tl.static_range(COLUMNS):
            value = tl.load(found_ptr + column * size + n, mask=inside)
            tl.store(drawn_ptr + (turn * COLUMNS + column) * most + n, value, mask=inside)
        token = tl.load(found_ptr + n, mask=inside, other=0.0).to(tl.int64)
        tl.store(tokens_ptr + n, token, mask=inside)
        tl.store(writable_ptr + n, tl.full([BLOCK], 1, tl.int64), mask=inside & (token == eos))
        tl.store(positions_ptr + n, tl.load(positions_ptr + n, mask=inside) + 1, mask=inside)
        tl.store(counts_ptr + n, tl.load(counts_ptr + n, mask=inside) + 1, mask=inside)
    tl.store(turn_ptr, turn + 1)


def go_on(
    found: torch.Tensor, drawn: torch.Tensor, turn: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor,
    writable: torch.Tensor, counts: torch.Tensor, eos_id: int,
) -> None:  # fmt: skip
    """Put float64 [columns, N] of `found`, whose first column has the tokens, at `drawn` float64 [turns, columns, most] of
    the turn that int64 [1] says; feed the tokens next, of rows int64 [N] contiguous. A row that has drawn `eos_id` may not
    write from position 1 on: it is idle."""
    columns, size = found.shape
    block = min(1024, triton.next_power_of_2(size))
    _go_on[(1,)](
        found, drawn, turn, tokens, positions, writable, counts, eos_id, size, drawn.shape[2], COLUMNS=columns, BLOCK=block,
        num_warps=max(1, block // 128),
    )  # fmt: skip
