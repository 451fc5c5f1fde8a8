"""The routed experts of a layer as one differentiable operation that keeps only what its backward pass must have.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.model.kernels.grouped import first_product, rows_product, weight_gradient
from megatron_ring.model.kernels.rows import Places, combine_rows, spread_rows
from megatron_ring.model.kernels.swiglu import swiglu_backward


def local_experts(
    x_th: torch.Tensor,
    weights_tk: torch.Tensor,
    places: Places,
    gate_up_e: torch.Tensor,
    down_e: torch.Tensor,
    plus: tuple[torch.Tensor, ...] = (),
    recompute: bool = False,
    exact: bool = False,
) -> torch.Tensor:
    """sum over k of weight * expert(x) + the tensors of `plus`, all experts being here.

    Args:
        x_th: [T, hidden].
        weights_tk: fp32 [T, k].
        places: of the T * k slots.
        gate_up_e: [E, 2f, hidden], down_e: [E, hidden, f].
        plus: up to two tensors [T, hidden] that are added in the same pass.
        recompute: gather rows and make the first product again in the backward pass instead of keeping [N, hidden + 3f].
        exact: the forward's products are those of --exact.
    """
    return _LocalExperts.apply(x_th, weights_tk, places, gate_up_e, down_e, recompute, exact, *plus)


def sorted_experts(
    x_nh: torch.Tensor,
    weights_n: torch.Tensor,
    ends_e: torch.Tensor,
    gate_up_e: torch.Tensor,
    down_e: torch.Tensor,
    recompute: bool = False,
    exact: bool = False,
) -> torch.Tensor:
    """weight * expert(x) [N, hidden] of rows that lie sorted by expert; `ends_e` int32 [E] tells where each one's end."""
    return _SortedExperts.apply(x_nh, weights_n, ends_e, gate_up_e, down_e, recompute, exact)


def _backward_rows(
    dy_nh: torch.Tensor,
    x_nh: torch.Tensor,
    gate_up_nf: torch.Tensor,
    activation: torch.Tensor | None,
    weights_n: torch.Tensor,
    ends_e: torch.Tensor,
    gate_up_e: torch.Tensor,
    down_e: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradients by x [N, hidden], weights [N], gate_up and down of weight * expert(x); activation [N, f] is SwiGLU's result,
    made again where it was not kept: on the CPU nearly all of it is needed anyway."""
    d_activation = rows_product(dy_nh, down_e, ends_e, transposed=False)
    if activation is None:
        d_gate_up_nf, d_weights, activation = swiglu_backward(d_activation, gate_up_nf, weights_n, again=True)
        assert activation is not None
    else:
        d_gate_up_nf, d_weights, _ = swiglu_backward(d_activation, gate_up_nf, weights_n)
    del d_activation
    d_down = weight_gradient(dy_nh, activation, ends_e)
    del activation
    d_gate_up = weight_gradient(d_gate_up_nf, x_nh, ends_e)
    dx_nh = rows_product(d_gate_up_nf, gate_up_e, ends_e, transposed=False)
    return dx_nh, d_weights, d_gate_up, d_down


class _LocalExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_th: torch.Tensor,
        weights_tk: torch.Tensor,
        places: Places,
        gate_up_e: torch.Tensor,
        down_e: torch.Tensor,
        recompute: bool,
        exact: bool,
        *plus: torch.Tensor,
    ) -> torch.Tensor:
        x_nh = spread_rows(x_th, places)
        weights_n = weights_tk.flatten().index_select(0, places.order)
        gate_up_nf, activation = first_product(x_nh, gate_up_e, places.ends, weights_n, exact)
        y_nh = rows_product(activation, down_e, places.ends, transposed=True, exact=exact)
        ctx.places, ctx.plus = places, len(plus)
        kept = (x_th, None, None) if recompute else (x_nh, gate_up_nf, activation if activation.is_cuda else None)
        ctx.save_for_backward(*kept, weights_n, gate_up_e, down_e)
        return combine_rows(y_nh, places.back, *plus)

    @staticmethod
    def backward(ctx: Any, d_th: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, activation, weights_n, gate_up_e, down_e = ctx.saved_tensors
        places: Places = ctx.places
        if gate_up_nf is None:
            x_nh = spread_rows(x_nh, places)
            gate_up_nf = rows_product(x_nh, gate_up_e, places.ends, transposed=True)
        dy_nh = spread_rows(d_th, places)
        dx_nh, d_weights, d_gate_up, d_down = _backward_rows(
            dy_nh, x_nh, gate_up_nf, activation, weights_n, places.ends, gate_up_e, down_e
        )
        del dy_nh, x_nh, activation
        back_tk = places.back
        d_weights_tk = None if d_weights is None else d_weights.index_select(0, back_tk.flatten()).view(back_tk.shape)
        return combine_rows(dx_nh, back_tk), d_weights_tk, None, d_gate_up, d_down, None, None, *[d_th] * ctx.plus


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_nh: torch.Tensor,
        weights_n: torch.Tensor,
        ends_e: torch.Tensor,
        gate_up_e: torch.Tensor,
        down_e: torch.Tensor,
        recompute: bool,
        exact: bool,
    ) -> torch.Tensor:
        weights_n = weights_n.float()
        gate_up_nf, activation = first_product(x_nh, gate_up_e, ends_e, weights_n, exact)
        kept = (None, None) if recompute else (gate_up_nf, activation if activation.is_cuda else None)
        ctx.save_for_backward(x_nh, *kept, weights_n, ends_e, gate_up_e, down_e)
        return rows_product(activation, down_e, ends_e, transposed=True, exact=exact)

    @staticmethod
    def backward(ctx: Any, dy_nh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, activation, weights_n, ends_e, gate_up_e, down_e = ctx.saved_tensors
        if gate_up_nf is None:
            gate_up_nf = rows_product(x_nh, gate_up_e, ends_e, transposed=True)
        dx, d_weights, d_gate_up, d_down = _backward_rows(
            dy_nh.contiguous(), x_nh, gate_up_nf, activation, weights_n, ends_e, gate_up_e, down_e
        )
        return dx, d_weights, None, d_gate_up, d_down, None, None
