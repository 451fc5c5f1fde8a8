"""What a turn does with its rows' numbers, by kernels and by torch: on the GPU where there is one, elsewhere in
Triton's interpreter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("triton", reason="Triton is not installed")

from megatron_ring.sampler import turn_triton  # noqa: E402
from megatron_ring.sampler.attention import DecodeLayout  # noqa: E402


def some_cache(pages: int, page: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(0, 1000, (9, pages), generator=generator, dtype=torch.int32)
    return SimpleNamespace(table=table.to(DEVICE), page_size=page, keys=torch.zeros(1, device=DEVICE))


@given(st.integers(1, 12), st.integers(1, 7), st.integers(1, 40), st.integers(0, 1000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_places_are_those_of_torch(n: int, pages: int, page: int, seed: int, apart: bool) -> None:
    """Idle rows, rows beyond the columns of a short graph, and rows that are no sequence (writable 0) among them; numbers
    beside each other in memory, and apart."""
    generator = torch.Generator().manual_seed(seed)
    cache, longest = some_cache(pages, page, seed), int(torch.randint(1, pages * page + 1, (1,), generator=generator))
    rows = torch.randint(0, 9, (n,), generator=generator)
    positions = torch.randint(0, pages * page, (n,), generator=generator)
    beyond = torch.randint(-1, 3, (n,), generator=generator)
    writable = torch.where(torch.rand(n, generator=generator) < 0.3, 0, positions + beyond)
    of_torch = DecodeLayout(
        positions, rows, writable, longest, SimpleNamespace(**{**vars(cache), "table": cache.table.cpu()})
    )
    columns = of_torch.decode.block_table.shape[1]
    numbers = torch.stack([rows, positions, writable], 1).to(DEVICE)
    if not apart:
        numbers = numbers.T.contiguous().T
    found = turn_triton.find_places(cache, *numbers.unbind(1), columns)
    assert torch.equal(found.table.cpu(), of_torch.decode.block_table)
    assert torch.equal(found.slots.cpu(), of_torch.slots) and torch.equal(found.idle.cpu(), of_torch.idle)
    assert torch.equal(found.lengths.cpu(), of_torch.decode.lengths)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_turn_ends_as_by_torch(n: int, columns: int, turn: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    most, eos = n + 3, 2
    found = torch.rand(columns, n, generator=generator, dtype=torch.float64)
    found[0] = torch.randint(0, 5, (n,), generator=generator).double()
    drawn = torch.rand(4, columns, most, generator=generator, dtype=torch.float64)
    state = torch.randint(0, 100, (4, most), generator=generator)
    ours_drawn, ours, count = drawn.to(DEVICE).clone(), state.to(DEVICE).clone(), torch.tensor([turn], device=DEVICE)
    turn_triton.go_on(found.to(DEVICE), ours_drawn, count, *ours[:, :n].unbind(), eos)
    drawn[turn, :, :n] = found
    tokens, positions, writable, counts = state[:, :n].unbind()
    tokens.copy_(found[0].long())
    writable.masked_fill_(tokens == eos, 1)
    positions += 1
    counts += 1
    assert torch.equal(ours.cpu(), state) and torch.equal(ours_drawn.cpu(), drawn) and count.item() == turn + 1
