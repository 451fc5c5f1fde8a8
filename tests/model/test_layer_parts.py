"""Asking for Transformer Engine where it cannot run ends in one line that says why."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from megatron_ring.config import ParallelConfig
from megatron_ring.errors import UserError
from megatron_ring.parallel import context
from megatron_ring.presets import RING_TINY


@pytest.fixture
def here():
    yield context.initialize(ParallelConfig(), RING_TINY, seed=0)
    context.shutdown()


def build(here: context.ParallelContext, dtype: torch.dtype) -> None:
    from megatron_ring.model.ring_model import build_model

    build_model(RING_TINY, here, dtype=dtype, layer_impl="te")


def test_absent(here: context.ParallelContext, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotThere:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "transformer_engine":
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotThere(), *sys.meta_path])
    with pytest.raises(UserError, match=r"^--layer-impl te: Transformer Engine is not installed: pip install "):
        build(here, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_present_without_what_it_wants(
    here: context.ParallelContext, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    if torch.cuda.is_available() and dtype is torch.bfloat16:
        pytest.skip("nothing lacks here")
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", types.ModuleType("transformer_engine.pytorch"))
    with pytest.raises(UserError, match="--layer-impl te: Transformer Engine wants CUDA and --precision bf16"):
        build(here, dtype)
