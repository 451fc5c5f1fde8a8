"""The bench of decoding attention: its loads, and what it refuses. It measures on a GPU alone."""

from __future__ import annotations

import sys

import pytest
import torch

from megatron_ring.errors import UserError
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))  # as when the tool itself runs

pytest.importorskip("triton", reason="Triton is not installed")

from tools.bench_attention import BenchAttention, candidates, main, taken, used


def test_loads_are_rows_and_tokens() -> None:
    assert BenchAttention(loads=("64x1000", "1x4")).sizes() == [(64, 1000), (1, 4)]


@pytest.mark.parametrize("load", ["64", "64x", "x64", "0x100", "8x3", "8x100x2", "8 x 100", "-8x100"])
def test_what_is_no_load_is_refused(load: str) -> None:
    with pytest.raises(UserError, match="--loads"):
        BenchAttention(loads=(load,))


@pytest.mark.parametrize(("settings", "said"), [({"loads": ()}, "--loads"), ({"page_size": 0}, "--page-size"),
                                               ({"workers": 0}, "--workers")])  # fmt: skip
def test_other_settings_are_refused(settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        BenchAttention(**settings)


def test_kernels_in_use_come_first_and_are_put_back() -> None:
    before = used()
    assert candidates()[0] == before and len(set(candidates())) == len(candidates()) > 10
    with pytest.raises(ZeroDivisionError), taken(candidates()[-1]):
        assert used() == candidates()[0] != before
        raise ZeroDivisionError
    assert used() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="Hopper"):
        main(BenchAttention())
