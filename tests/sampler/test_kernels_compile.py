"""The kernels that draw tokens compile for a Hopper GPU, which the interpreter cannot tell. Needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

CODE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from megatron_ring.sampler import cut_triton, draw_triton

def build(kernel, types, **constants):
    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]
    print(kernel.__name__)

numbers = dict.fromkeys(("width", "tiles", "top_k"), "i32")
numbers |= dict.fromkeys(("inverse_temperature", "top_p", "below_highest"), "fp32")
others = {"statistics_ptr": "*fp32", "seeds_ptr": "*i64", "positions_ptr": "*i64"}
for logits, shift in (("*bf16", 16), ("*fp32", 0)):
    types = {"logits_ptr": logits, "out_ptr": "*fp32", **numbers, **others}
    build(cut_triton._find_least_kept, types, CUTS_K=True, CUTS_P=True, SHIFT=shift, TILE=4096)
    for cut in (False, True):
        types["least_ptr"] = "*fp32" if cut else logits
        build(draw_triton._draw_tile_statistics, types, CUT=cut, TILE=4096)
        build(draw_triton._draw_token, types | {"out_ptr": "*fp64"}, CUT=cut, TILE=4096, TILES=32)
"""


@pytest.mark.slow
def test_drawing_compiles_for_hopper() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 10
