"""Two kernels rotate queries and keys, and must store the same bits. The interpreter rounds every product, a compiler those
that it likes: so which ones are rounded has to be said. Needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

CODE = """
import re
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from megatron_ring.model.kernels import rope_triton
from megatron_ring.sampler import decode_triton

def count(kernel, types, **constants):
    types |= dict.fromkeys(constants | {"DEPENDENT": False}, "constexpr")
    signature = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants | {"DEPENDENT": False})
    options = {"num_warps": 2, "enable_fp_fusion": False}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(*(len(re.findall(rf"[^.](?:{name})\\.(?:rn\\.)?f32", ptx)) for name in ("fma", "add")))

tables = dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32") | {"slots_ptr": "*i64"}
types = dict.fromkeys(rope_triton._rope_split.arg_names, "i32") | tables
types |= dict.fromkeys(("qkv_ptr", "q_ptr", "k_ptr", "v_ptr"), "*bf16")
rope = {"GROUPS": 4, "QUERIES": 4, "HALF": 64, "HEADS_BLOCK": 32, "HALF_BLOCK": 64, "BACKWARD": False, "SLOTS": True}
count(rope_triton._rope_split, types, **rope)
types = dict.fromkeys(decode_triton._attend_part.arg_names, "i32") | tables
types |= dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), "*bf16") | {"lengths_ptr": "*i64", "table_ptr": "*i32"}
types |= {"lse_ptr": "*fp32", "scale": "fp32"}
shape = {"GROUP": 4, "ROWS": 16, "D": 128, "WIDTH": 128, "PAGE": 32, "SPLIT": 512, "BLOCK": 32, "ONE": True}
for turn in (False, True):
    count(decode_triton._attend_part, types, TURN=turn, **shape)
"""


@pytest.mark.slow
def test_the_rotations_products_are_rounded_as_it_is_said() -> None:
    """Where the compiler may fuse nothing by itself, the rotation's sums are multiply-adds, and it has no others."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    rope, attends, turns = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert rope[0] > 0 and rope[1] == 0
    assert turns[0] > attends[0] and turns[1] == attends[1]
