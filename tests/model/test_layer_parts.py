"""Asking for Transformer Engine where it cannot run ends in one line that says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError
from megatron_ring.parallel import context
from tests.conftest import ROOT


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

    from megatron_ring.model import layer_parts

    monkeypatch.setattr(layer_parts, "has_cuda", lambda: True)
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotThere(), *sys.meta_path])
    with pytest.raises(UserError, match=r"^--layer-impl te: Transformer Engine is not installed: pip install "):
        build(here, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_what_it_wants(here: context.ParallelContext, dtype: torch.dtype) -> None:
    if torch.cuda.is_available() and dtype is torch.bfloat16:
        pytest.skip("nothing lacks here")
    with pytest.raises(UserError, match="--layer-impl te: Transformer Engine wants a CUDA device and --precision bf16"):
        build(here, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_cuda_libraries_are_left_alone_without_a_gpu(tmp_path: Path) -> None:
    """megatron-core would take their kernels for the norm of gradients, which has no meaning on a CPU."""
    for name in ("transformer_engine", "apex"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [
        sys.executable,
        "-c",
        "from megatron_ring import parallel; parallel.prepare(); import megatron_ring.model.ring_model",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
