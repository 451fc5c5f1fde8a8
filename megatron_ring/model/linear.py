"""megatron-core's tensor-parallel linear layers, past their machinery where there is nothing to exchange, or no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear

from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives

# (sum fp32 [b, a], dy [n, b], x [n, a], contiguous): sum += dy^T x
AddProduct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """`module(x)[0]`. Without tensor parallelism that is torch's own product, whose host time is a fraction of theirs: on a
    GPU a layer's forward pass is bound by the host otherwise. Or the one of --exact, in the forward pass.

    Without gradients tensor-parallel layers, too, are products and collectives of our own: megatron-core's gather into a
    buffer that all of them share and that moves when it must grow, while CUDA graphs would go on with where it was."""
    if type(module) in (ColumnParallelLinear, RowParallelLinear):
        if module.config.tensor_model_parallel_size == 1:
            if module.config.ring_exact or (torch.is_grad_enabled() and hasattr(module.weight, "add_product")):
                return _Linear.apply(x, module.weight, module.bias, module.config.ring_exact)
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
        return total.view(x.shape), _weight_gradient(weight, dy_rows, x.reshape(-1, x.shape[-1])), None


def add_product(total: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """total + a @ b, all of one dtype, over `total` where there is one."""
    return a @ b if total is None else total.addmm_(a, b)


def exact_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight^T + bias by the kernel of --exact, without gradients."""
    from megatron_ring.model.kernels.exact_mm_triton import exact_mm

    return exact_mm(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x @ weight^T + bias; `exact`: each row's bits its own. Gradients as torch makes them, or by `add_products`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, exact: bool) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = bias is not None
        return exact_product(x, weight, bias) if exact else F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = d.flatten(0, -2)
        d_weight = _weight_gradient(weight, rows, x.flatten(0, -2))
        return d @ weight, d_weight, rows.sum(0) if ctx.bias else None, None


def add_products(model: torch.nn.Module, add: AddProduct) -> list[torch.nn.Parameter]:
    """Have `add` put the gradients of the linear layers' weights into their `main_grad` buffers (fp32, cleared before a
    step), and return these weights. Under tensor parallelism megatron-core does, by NVIDIA Apex's product.

    The head and the experts make their weights' gradients in other ways.

    Raises:
        UserError: the layers are another implementation's.
    """
    layers: list[Any] = [module for module in model.modules() if type(module) in (ColumnParallelLinear, RowParallelLinear)]
    if not layers:
        raise UserError("--optimizer.apex: gradients are added to buffers for --layer-impl native alone")
    for module in layers:
        module.weight.add_product = add
        module.gradient_accumulation_fusion = True
    return [module.weight for module in layers]


def _weight_gradient(weight: Any, dy_nb: torch.Tensor, x_na: torch.Tensor) -> torch.Tensor:
    """dy^T x. Where it was added to the weight's buffer, memory that nobody reads: hooks wait for a gradient."""
    add: AddProduct | None = getattr(weight, "add_product", None)
    if add is None:
        return dy_nb.t() @ x_na
    add(weight.main_grad, dy_nb.contiguous(), x_na.contiguous())
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)
