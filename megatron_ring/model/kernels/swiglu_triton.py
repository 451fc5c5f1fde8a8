"""SwiGLU, optionally with a weight for each row, forward and backward in one pass each."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from megatron_ring.model.kernels.dependent import launch_options
from megatron_ring.model.kernels.dependent_triton import begin

BLOCK_LIMIT = 4096  # columns that one program holds; wider rows take several passes


@triton.jit
def _swiglu_forward(  # type: ignore[no-untyped-def]
    gu_ptr, w_ptr, out_ptr, width, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):
    begin(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if WEIGHTED:
        scale = tl.load(w_ptr + row)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        gate = tl.load(gu_ptr + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gu_ptr + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
        out = gate * tl.sigmoid(gate) * up * scale
        tl.store(out_ptr + row * width + column, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_backward(  # type: ignore[no-untyped-def]
    d_ptr, gu_ptr, w_ptr, dgu_ptr, out_ptr, dw_ptr, width, WEIGHTED: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scale = 1.0
    if WEIGHTED:
        scale = tl.load(w_ptr + row)
    dw = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        at = row * 2 * width + column
        gate = tl.load(gu_ptr + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gu_ptr + at + width, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(d_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        if WEIGHTED:
            dw += d * silu * up
        if AGAIN:
            tl.store(out_ptr + row * width + column, (silu * up * scale).to(out_ptr.dtype.element_ty), mask=inside)
        d = d * scale
        d_gate = d * up * (sigmoid + silu * (1.0 - sigmoid))
        tl.store(dgu_ptr + at, d_gate.to(dgu_ptr.dtype.element_ty), mask=inside)
        tl.store(dgu_ptr + at + width, (d * silu).to(dgu_ptr.dtype.element_ty), mask=inside)
    if WEIGHTED:
        tl.store(dw_ptr + row, tl.sum(dw, axis=0))


def _launch(width: int) -> dict[str, Any]:
    block = min(BLOCK_LIMIT, triton.next_power_of_2(width))
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def forward(gate_up_nf: torch.Tensor, weights_n: torch.Tensor | None) -> torch.Tensor:
    """[N, f] from contiguous [N, 2f] (gates, ups) and fp32 weights [N]."""
    rows, width = gate_up_nf.shape[0], gate_up_nf.shape[1] // 2
    out = gate_up_nf.new_empty(rows, width)
    if rows:
        weights = gate_up_nf if weights_n is None else weights_n
        options = {**_launch(width), **launch_options()}
        _swiglu_forward[(rows,)](gate_up_nf, weights, out, width, WEIGHTED=weights_n is not None, **options)
    return out


def backward(
    d_nf: torch.Tensor, gate_up_nf: torch.Tensor, weights_n: torch.Tensor | None, again: bool
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(gradient of gate_up [N, 2f], of the weights fp32 [N], the forward's result once more if `again`)."""
    rows, width = gate_up_nf.shape[0], gate_up_nf.shape[1] // 2
    d_gate_up = torch.empty_like(gate_up_nf)
    out = torch.empty_like(d_nf) if again else None
    dw = None if weights_n is None else torch.empty(rows, dtype=torch.float32, device=d_nf.device)
    if rows:
        unused = gate_up_nf
        _swiglu_backward[(rows,)](
            d_nf, gate_up_nf, unused if weights_n is None else weights_n, d_gate_up, d_nf if out is None else out,
            unused if dw is None else dw, width, WEIGHTED=weights_n is not None, AGAIN=again, **_launch(width),
        )  # fmt: skip
    return d_gate_up, dw, out
