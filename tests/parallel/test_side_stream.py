"""Work beside the current stream, where there is one stream only: it runs at once. tests/gpu has the rest."""

from __future__ import annotations

import weakref

import pytest
import torch

from megatron_ring.parallel.graphs import SideStream

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has another stream")


def test_work_runs_once_and_at_once() -> None:
    x, calls = torch.arange(3.0), []

    def work() -> torch.Tensor:
        calls.append(x.sum().item())
        return x * 2

    pending = SideStream().beside(work)
    assert calls == [3.0]
    x += 1
    found = pending.result()
    assert found.tolist() == [0.0, 2.0, 4.0] and pending.result() is found and calls == [3.0]


def test_what_the_work_reads_stays_until_the_join() -> None:
    x = torch.arange(3.0)
    there = weakref.ref(x)
    pending = SideStream().beside(lambda x=x: x + 1)
    del x
    assert there() is not None
    assert pending.result().tolist() == [1.0, 2.0, 3.0]
    assert there() is None


def test_a_failure_is_told_where_the_work_is_begun() -> None:
    with pytest.raises(ZeroDivisionError):
        SideStream().beside(lambda: torch.ones(1 // 0))
