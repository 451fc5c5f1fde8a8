"""Flat ranges as boxes: every element once, each where its number says."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_boxes_of_a_flat_range_hold_its_elements_in_order(shape: list[int], data: st.DataObject) -> None:
    from megatron_ring.checkpoint.pieces import flat_boxes

    total = prod(shape)
    low = data.draw(st.integers(0, total))
    high = data.draw(st.integers(low, total))
    numbered = torch.arange(total).view(shape)
    found = []
    for box, first in flat_boxes(low, high, tuple(shape)):
        part = numbered[tuple(slice(o, e) for o, e in zip(box.offset, box.end, strict=True))]
        assert tuple(part.shape) == box.size
        assert part.flatten().tolist() == list(range(first, first + part.numel()))
        found += part.flatten().tolist()
    assert found == list(range(low, high))
    assert len(list(flat_boxes(low, high, tuple(shape)))) <= 2 * len(shape) - 1
