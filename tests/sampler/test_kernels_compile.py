"""The decoding step's kernels compile for a Hopper GPU, which the interpreter cannot tell. Needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="Triton is not installed")

CODE = """
import re
import subprocess
import tempfile
from pathlib import Path
import triton
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from megatron_ring.model.kernels import few_fp8_triton as fp8, few_plain_triton as plain, few_tokens_triton as few
from megatron_ring.model.kernels import norm_triton, rope_triton, router_triton, rows_triton, slots_triton
from megatron_ring.sampler import cut_triton, decode_triton, draw_triton, turn_triton

def build(kernel, types, warps, stages=3, **constants):
    early = "DEPENDENT" in kernel.arg_names
    constants |= {"DEPENDENT": True} if early else {}
    signature = types | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(signature) if name not in constants}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "launch_pdl": early}
    built = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = built.asm["ptx"]
    assert built.asm["cubin"] and ("griddepcontrol.wait" in ptx) == early  # so that the next kernel is behind all before
    assert ("gpu.acquire" in ptx) == ("programs" in kernel.arg_names)
    if kernel.__name__.startswith("_route"):
        assert spilled(built) <= 64, (kernel.__name__, constants)
    shared = built.metadata.shared
    print(kernel.__name__, shared, len(set(re.findall(r"wgmma\\S+e4m3.e4m3", ptx))))
    return shared

def spilled(built):
    # Bytes of a thread's registers that go to memory.
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        command = [Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump", "-res-usage", file.name]
        return int(re.search(r"STACK:(\\d+)", subprocess.run(command, capture_output=True, text=True, check=True).stdout)[1])

numbers = dict.fromkeys(("width", "tiles"), "i32")
settings = ("inverse_temperature", "top_k", "top_p", "below_highest", "greedy")
numbers |= dict.fromkeys((f"{name}_ptr" for name in settings), "*fp64")
others = {"statistics_ptr": "*fp32", "seeds_ptr": "*i64", "positions_ptr": "*i64"}
for logits, shift in (("*bf16", 16), ("*fp32", 0)):
    types = {"logits_ptr": logits, "out_ptr": "*fp32", **numbers, **others}
    build(cut_triton._find_least_kept, types, cut_triton.WARPS, SHIFT=shift, TILE=cut_triton.TILE)
    for cut in (False, True):
        types["least_ptr"] = "*fp32" if cut else logits
        build(draw_triton._draw_tile_statistics, types, 8, CUT=cut, TILE=draw_triton.TILE)
        build(draw_triton._draw_token, types | {"out_ptr": "*fp64"}, 8, CUT=cut, TILE=draw_triton.TILE, TILES=32)

def experts(of: str, rows: int, tiles: few.Choices, parts: int) -> None:
    narrow = parts > 0
    types = dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), of) | dict.fromkeys(("order_ptr", "ends_ptr", "made_ptr"), "*i32")
    types |= dict.fromkeys(("programs", "hidden", "width", "columns", "act_columns", "slots"), "i32")
    types |= {"weights_ptr": "*fp32"}
    types |= dict.fromkeys(("x_ptr", "w_ptr", "act_ptr"), "*fp8e4nv") if narrow else {}
    types |= dict.fromkeys(("scales_ptr", "x_scales_ptr", "act_scales_ptr"), "*fp32") if narrow else {}
    ups, downs = tiles[max(rows, min(tiles))]
    downs = [down._replace(columns=up.rows) for up in ups for down in downs] if narrow else downs
    kernels = (fp8._gate_up, fp8._down) if narrow else (plain._few_gate_up, plain._few_down)
    for kernel, tile in [*((kernels[0], up) for up in ups), *((kernels[1], down) for down in downs)]:
        whole = rows if narrow else min(rows, plain.WHOLE)
        constants = {"PARTS": parts} if narrow else {"MORE": rows - whole, "PARTLY": True}
        constants |= {"K": 6} if kernel is kernels[0] else {}
        taken = build(kernel, types, tile.warps, tile.stages, ROWS=whole, TILE=tile.rows, DEPTH=tile.columns, **constants)
        held = (2 - kernels.index(kernel)) * tile.rows + max(1, parts) * rows  # as `usual_tiles` counts
        assert taken <= tile.stages * tile.columns * held * {"*bf16": 2, "*fp32": 4}.get(of if not narrow else "", 1)

for parts, tiles in enumerate((few.WIDE_TILES, few.FP8_ONE_PART_TILES, few.FP8_TILES)):
    for rows in tiles:
        experts("*bf16", rows, tiles, parts)
experts("*fp32", few.MOST_FP32_ROWS, few.WIDE_TILES, 0)
types = dict.fromkeys(("order_ptr", "back_ptr", "ends_ptr", "made_ptr"), "*i32")
types |= {"experts_ptr": "*i64", "scales_ptr": "*fp32"}
types |= dict.fromkeys(("slots", "hidden", "columns"), "i32") | {"x_ptr": "*bf16", "parts_ptr": "*fp8e4nv"}
for idle in (False, True):
    types |= {"idle_ptr": "*u8" if idle else "*i64"}
    build(slots_triton._sort_slots, types, 8, E=64, K=6, IDLE=idle, BLOCK=16384, PARTS=2 * idle, ROW=2048)
types = {"values_ptr": "*fp8e4nv", "parts_ptr": "*fp8e4nv", "scales_ptr": "*fp32", "out_ptr": "*bf16", "x_ptr": "*bf16"}
types |= dict.fromkeys(("rows", "hidden", "columns", "padded_columns"), "i32")
build(fp8._wide, types, 4, TILE=64, DEPTH=128)
types = dict.fromkeys(("x_ptr", "w_ptr"), "*bf16") | dict.fromkeys(("logits_ptr", "weights_ptr", "parts_ptr"), "*fp32")
types |= {"experts_ptr": "*i64", "tokens": "i32", "hidden": "i32"}
for count in (8, 64, 256, 1024):
    block = router_triton.expert_block(count)
    shape = {"E": count, "E_BLOCK": block, "DEPTH": router_triton.depth_of(block), "PART": router_triton.PART}
    how, all_of = (router_triton.WARPS, router_triton.STAGES), {"E": count, "E_BLOCK": max(16, count)}
    for rows in (16, 32):
        build(router_triton._route_logits, types, *how, T=rows, PARTS=1, **shape)
    build(router_triton._route_logits, types, *how, T=router_triton.MANY_TOKENS, PARTS=8, **shape)
    choosing = min(router_triton.CHOOSING, router_triton.at_a_time(count))
    build(router_triton._route_chosen, types, 4, K=6, T=choosing, PARTS=8, **all_of)
    sums = {"sums_ptr": "*fp32", "padding_ptr": "*u8", **dict.fromkeys(("balance", "z"), "fp32")}
    sums |= dict.fromkeys(("share_ptr", "scale_ptr", "d_weights_ptr", "out_ptr"), "*fp32")
    losses = {"K": 6, "T": router_triton.at_a_time(count), "LOSSES": True, "PADDED": True, **all_of}
    build(router_triton._route_forward, types | sums, 4, TOKENS=router_triton.TOKENS, **losses)
    build(router_triton._route_backward, types | sums | {"out_ptr": "*bf16"}, 4, SPLIT=True, **losses)
    if count == 64:  # of one token, which Triton makes a constant
        build(router_triton._route_logits, types, *how, T=16, PARTS=1, tokens=1, **shape)
        build(router_triton._route_chosen, types, 4, K=6, T=router_triton.CHOOSING, PARTS=8, tokens=1, **all_of)
types = dict.fromkeys(norm_triton._rms_norm_forward.arg_names, "*bf16") | {"rstd_ptr": "*fp32", "eps": "fp32"}
types |= {"width": "i32"}
build(norm_triton._rms_norm_forward, types, 8, ADD=True, BLOCK=2048)
types = dict.fromkeys(rows_triton._combine_and_norm.arg_names, "*bf16") | {"index_ptr": "*i32", "eps": "fp32"}
types |= {"width": "i32"}
build(rows_triton._combine_and_norm, types, 8, K=6, PLUS=2, BLOCK=2048)
types = dict.fromkeys(turn_triton._find_places.arg_names, "*i64") | dict.fromkeys(("stride", "columns", "page"), "i32")
build(turn_triton._find_places, types | {"table_ptr": "*i32", "out_ptr": "*i32", "idle_ptr": "*u8"}, 1, BLOCK=128)
types = dict.fromkeys(turn_triton._go_on.arg_names, "*i64") | dict.fromkeys(("eos", "size", "most"), "i32")
build(turn_triton._go_on, types | {"found_ptr": "*fp64", "drawn_ptr": "*fp64"}, 8, COLUMNS=4, BLOCK=1024)
types = dict.fromkeys(decode_triton._attend_part.arg_names, "i32") | dict.fromkeys(("k_ptr", "v_ptr", "q_ptr"), "*bf16")
types |= {"table_ptr": "*i32", "lengths_ptr": "*i64", "lse_ptr": "*fp32", "scale": "fp32", "slots_ptr": "*i64"}
types |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
constants = {"GROUP": 4, "ROWS": 16, "D": 128, "WIDTH": 128}
constants |= {name: getattr(decode_triton, name) for name in ("SPLIT", "BLOCK")}
for one, page in ((False, 32), (True, 16)):
    types |= {"out_ptr": "*bf16" if one else "*fp32"}
    how = (decode_triton.WARPS, decode_triton.STAGES if one else decode_triton.FEW_STAGES)
    build(decode_triton._attend_part, types, *how, ONE=one, TURN=one, PAGE=page, **constants)
    build(decode_triton._attend_part, types, *how, ONE=one, TURN=not one, PAGE=page, **constants)
for width, of, size, rows in ((256, "*bf16", 2, 16), (128, "*fp32", 4, 16), (64, "*fp32", 4, 64)):
    types |= {"out_ptr": "*fp32"} | dict.fromkeys(("k_ptr", "v_ptr", "q_ptr"), of)
    constants |= {"GROUP": rows, "ROWS": rows, "D": width, "WIDTH": width, "ONE": False, "TURN": True, "PAGE": 16}
    taken = build(decode_triton._attend_part, types, decode_triton.WARPS, decode_triton.FEW_STAGES, **constants)
    assert decode_triton.stages_of(1, rows, width, size, taken - 1) == decode_triton.STAGES
    taken = build(decode_triton._attend_part, types, decode_triton.WARPS, decode_triton.STAGES, **constants)
    assert taken <= 99 << 10  # of an RTX 4090
for of in ("*bf16", "*fp32"):
    types = dict.fromkeys(rope_triton._rope_split.arg_names, "i32") | {"slots_ptr": "*i64"}
    types |= dict.fromkeys(("qkv_ptr", "q_ptr", "k_ptr", "v_ptr"), of)
    types |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
    constants = {"HEADS_BLOCK": 32, "HALF_BLOCK": 64, "BACKWARD": False, "SLOTS": True}
    build(rope_triton._rope_split, types, 4, GROUPS=4, QUERIES=4, HALF=64, **constants)
"""
HOPPER_SHARED = 227 * 1024  # bytes of a multiprocessor that programs can have


@pytest.mark.slow
def test_decoding_compiles_for_hopper() -> None:
    """The experts' kernels in every tile that can be chosen, in the shared memory that is counted for it. Those for FP8
    multiply in FP8."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    built = [(line.split()[0], *map(int, line.split()[1:])) for line in done.stdout.splitlines()]
    assert all(shared <= HOPPER_SHARED for _, shared, _ in built)
    assert sum(name.startswith("_few") for name, *_ in built) == 19
    narrow = [products for name, _, products in built if name in ("_gate_up", "_down")]
    assert len(narrow) == 30 and all(narrow) and len(built) == 104
