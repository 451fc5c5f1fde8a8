"""megatron-core's tensor-parallel linear layers, past their machinery where there is nothing to exchange."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear


def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`module(x)[0]`. Without tensor parallelism that is torch's own product, whose host time is a fraction of theirs: on a
    GPU a layer's forward pass is bound by the host otherwise."""
    if type(module) in (ColumnParallelLinear, RowParallelLinear) and module.config.tensor_model_parallel_size == 1:
        return F.linear(x, module.weight, module.bias)
    out: torch.Tensor = module(x)[0]
    return out


def linear_and_pass(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(`module(x)[0]`, x): who else needs x takes the second, and the gradients meet in the product's epilogue instead of a
    pass of their own. For one taker, whose gradient of it is a tensor of its own: it is overwritten."""
    if type(module) is ColumnParallelLinear and module.config.tensor_model_parallel_size == 1 and module.bias is None:
        return _LinearAndPass.apply(x, module.weight)
    return linear(module, x), x


class _LinearAndPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight), x

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, dx: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if dy is None:
            return dx, None
        dy_rows = dy.reshape(-1, dy.shape[-1])
        total = add_product(None if dx is None else dx.reshape(-1, dx.shape[-1]), dy_rows, weight)
        return total.view(x.shape), dy_rows.t() @ x.reshape(-1, x.shape[-1])


def add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total + a @ b, all of one dtype, over `total` where there is one."""
    return a @ b if total is None else total.addmm_(a, b)
