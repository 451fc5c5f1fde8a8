"""megatron-core's tensor-parallel linear layers, past their machinery where there is nothing to exchange, or no gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megatron_ring.parallel import collectives


def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`module(x)[0]`. Without tensor parallelism that is torch's own product, whose host time is a fraction of theirs: on a
    GPU a layer's forward pass is bound by the host otherwise. Or the one of --exact, in the forward pass.

    Without gradients tensor-parallel layers, too, are products and collectives of our own: megatron-core's gather into a
    buffer that all of them share and that moves when it must grow, while CUDA graphs would go on with where it was."""
    if type(module) in (ColumnParallelLinear, RowParallelLinear):
        if module.config.tensor_model_parallel_size == 1:
            if module.config.ring_exact:
                return _ExactLinear.apply(x, module.weight, module.bias)
            return F.linear(x, module.weight, module.bias)
        if module.config.sequence_parallel and not torch.is_grad_enabled():
            return _column(module, x) if type(module) is ColumnParallelLinear else _row(module, x)
    out: torch.Tensor = module(x)[0]
    return out


def _column(module: ColumnParallelLinear, x: torch.Tensor) -> torch.Tensor:
    """[T/TP, 1, in] -> [T, 1, out/TP]."""
    return F.linear(collectives.gather_tokens_over_tensor(x), module.weight, module.bias)


def _row(module: RowParallelLinear, x: torch.Tensor) -> torch.Tensor:
    """[T, 1, in/TP] -> [T/TP, 1, out]."""
    out = collectives.scatter_sum_of_tokens_over_tensor(F.linear(x, module.weight))
    return out if module.bias is None else out + module.bias


def linear_and_pass(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(`module(x)[0]`, x): who else needs x takes the second, and the gradients meet in the product's epilogue instead of a
    pass of their own. For one taker, whose gradient of it is a tensor of its own: it is overwritten."""
    if type(module) is ColumnParallelLinear and module.config.tensor_model_parallel_size == 1 and module.bias is None:
        return _LinearAndPass.apply(x, module.weight, module.config.ring_exact)
    return linear(module, x), x


class _LinearAndPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)
        return exact_product(x, weight) if exact else F.linear(x, weight), x

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor | None, dx: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if dy is None:
            return dx, None, None
        dy_rows = dy.reshape(-1, dy.shape[-1])
        total = add_product(None if dx is None else dx.reshape(-1, dx.shape[-1]), dy_rows, weight)
        return total.view(x.shape), dy_rows.t() @ x.reshape(-1, x.shape[-1]), None


def add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total + a @ b, all of one dtype, over `total` where there is one."""
    return a @ b if total is None else total.addmm_(a, b)


def exact_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight^T + bias by the kernel of --exact, without gradients."""
    from megatron_ring.model.kernels.exact_mm_triton import exact_mm

    return exact_mm(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)


class _ExactLinear(torch.autograd.Function):
    """x @ weight^T + bias, each row's bits its own; gradients as torch makes them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return exact_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d.flatten(0, -2)
        return d @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0) if ctx.bias else None
