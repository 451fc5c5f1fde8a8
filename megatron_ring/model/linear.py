"""megatron-core's tensor-parallel linear layers, past their machinery where there is nothing to exchange."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear


def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`module(x)[0]`. Without tensor parallelism that is torch's own product, whose host time is a fraction of theirs: on a
    GPU a layer's forward pass is bound by the host otherwise. Or the one of --exact, in the forward pass."""
    if type(module) in (ColumnParallelLinear, RowParallelLinear) and module.config.tensor_model_parallel_size == 1:
        if module.config.ring_exact:
            return _ExactLinear.apply(x, module.weight, module.bias)
        return F.linear(x, module.weight, module.bias)
    out: torch.Tensor = module(x)[0]
    return out


class _ExactLinear(torch.autograd.Function):
    """x @ weight^T + bias, each row's bits its own; gradients as torch makes them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        from megatron_ring.model.kernels.exact_mm_triton import exact_mm

        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return exact_mm(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d.flatten(0, -2)
        return d @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0) if ctx.bias else None
