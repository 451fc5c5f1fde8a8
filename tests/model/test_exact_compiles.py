"""The kernels of --exact, compiled for Hopper without a GPU: every version of one has the same tensor-core products, per 16
of what is summed over, spills no register and fits a multiprocessor."""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

SHARED = 227 << 10  # bytes that a program may have


@pytest.fixture(scope="module")
def compiler() -> Iterator[ProcessPoolExecutor]:
    """A process where Triton compiles: whether it interprets is decided when it is imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield process


def compiled(function: Any, types: dict[str, str], constants: dict[str, Any], warps: int, stages: int) -> tuple[int, str]:
    """Shared memory (bytes) and PTX of a version whose integers and pointers are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    free = [i for i, name in enumerate(names) if signature[name] == "i32" or signature[name].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in free if names[i] != "rows"}
    source = ASTSource(function, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": stages}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return found.metadata.shared, found.asm["ptx"]


def products() -> list[tuple[int, str, str]]:
    from megatron_ring.model.kernels import exact_mm_triton as exact

    found = []
    for tile in exact.TILES:
        for experts in (0, 64):
            types = {
                "x_desc": f"tensordesc<bf16[{tile.rows},{tile.depth}]>", "ends_ptr": "*i32", "bias_ptr": "*bf16",
                "w_desc": f"tensordesc<bf16[{tile.columns},{tile.depth}]>", "out_ptr": "*bf16",
            }  # fmt: skip
            constants = {
                "EXPERTS": experts, "E_BLOCK": max(1, experts), "BIAS": True, "ROWS": tile.rows, "COLUMNS": tile.columns,
                "DEPTH": tile.depth, "SUPER": exact.SUPER,
            }  # fmt: skip
            found.append((*compiled(exact._exact_mm, types, constants, tile.warps, tile.stages), f"n{tile.columns}k16"))
    return found


def test_products(compiler: ProcessPoolExecutor) -> None:
    for shared, ptx, wanted in compiler.submit(products).result(timeout=300):
        kinds = set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx))
        assert kinds == {f"wgmma.mma_async.sync.aligned.m64{wanted}.f32.bf16.bf16"}
        assert "cp.async.bulk.tensor" in ptx and ".local" not in ptx
        assert shared <= SHARED


def attentions() -> list[tuple[int, str]]:
    from megatron_ring.model.kernels import exact_attention_triton as exact

    found = []
    types = {name: "*bf16" for name in ("q_ptr", "k_ptr", "v_ptr", "out_ptr")}
    types |= {name: "*i32" for name in ("tiles_ptr", "sequences_ptr", "table_ptr")} | {"scale": "fp32"}
    for rows in (exact.MANY, exact.ONE):
        for page in (0, 32):
            constants = {
                "GROUP": 4, "ROWS": rows.rows, "POSITIONS": exact.positions_of(rows, 4), "PAGE": page, "D": 128,
                "WIDTH": 128, "KEYS": exact.KEYS,
            }  # fmt: skip
            found.append(compiled(exact._exact_attention, types, constants, rows.warps, rows.stages))
    return found


def test_attention(compiler: ProcessPoolExecutor) -> None:
    for shared, ptx in compiler.submit(attentions).result(timeout=300):
        kinds = set(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)[\w.]*", ptx))
        assert kinds == {f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16" for n in (64, 128)}
        assert ".local" not in ptx and shared <= SHARED
