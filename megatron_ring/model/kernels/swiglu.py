"""SwiGLU: silu(gate) * up, of one tensor that holds both side by side, times a weight for each row where rows have one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def swiglu_forward(gate_up_nf: torch.Tensor, weights_n: torch.Tensor | None = None) -> torch.Tensor:
    """[N, f] from contiguous [N, 2f] (gates first) and weights fp32 [N]; no gradients. Computed in fp32 on CUDA."""
    if gate_up_nf.is_cuda:
        from megatron_ring.model.kernels import swiglu_triton

        return swiglu_triton.forward(gate_up_nf, weights_n)
    gate, up = gate_up_nf.chunk(2, dim=-1)
    out = F.silu(gate).mul_(up)
    return out if weights_n is None else out.mul_(weights_n[:, None])


def swiglu_backward(
    d_nf: torch.Tensor, gate_up_nf: torch.Tensor, weights_n: torch.Tensor | None = None, again: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of `swiglu_forward` from that of its result.

    Returns:
        by gate_up [N, 2f]; by the weights fp32 [N]; the forward's result [N, f] once more, where `again` asks for it.
    """
    if gate_up_nf.is_cuda:
        from megatron_ring.model.kernels import swiglu_triton

        return swiglu_triton.backward(d_nf.contiguous(), gate_up_nf, weights_n, again)
    gate, up = gate_up_nf.chunk(2, dim=-1)
    d_gate_up = torch.empty_like(gate_up_nf)
    d_gate, d_up = d_gate_up.chunk(2, dim=-1)
    sigmoid = gate.sigmoid()
    silu = gate * sigmoid
    product = silu * up
    d_weights = None
    if weights_n is not None:
        d_weights = torch.linalg.vecdot(d_nf, product).float()
        d_nf = d_nf * weights_n[:, None].to(d_nf.dtype)
        product = product.mul_(weights_n[:, None]) if again else product
    torch.mul(d_nf, silu, out=d_up)
    # The derivative of silu is sigmoid + silu - silu * sigmoid.
    torch.mul(d_nf, up, out=d_gate)
    d_gate *= silu.addcmul_(silu - 1, sigmoid, value=-1)
    return d_gate_up, d_weights, product if again else None


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up [..., 2f] -> [..., f], keeping nothing but its input for the backward pass."""
    return _SwiGLU.apply(gate_up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:
        rows = gate_up.contiguous().view(-1, gate_up.shape[-1])
        ctx.save_for_backward(rows)
        return swiglu_forward(rows).view(*gate_up.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        return swiglu_backward(d.reshape(rows.shape[0], -1), rows)[0].view(*d.shape[:-1], -1)
