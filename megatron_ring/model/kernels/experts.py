"""The routed experts of a layer as one differentiable operation that keeps only what its backward pass must have.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from megatron_ring.model.kernels.rows import Places, combine_rows, gather_rows
from megatron_ring.model.kernels.swiglu import swiglu_backward, swiglu_forward


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
        recompute: gather rows and make the first product again in the backward pass instead of keeping [N, hidden + 2f].
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


def grouped_product(x_nk: torch.Tensor, weight_eok: torch.Tensor, ends_e: torch.Tensor, exact: bool) -> torch.Tensor:
    """Each expert's rows times its weight^T, [N, O]; there may be none. `exact`: each row's bits do not depend on others."""
    if x_nk.shape[0] == 0:
        return x_nk.new_empty(0, weight_eok.shape[1])
    if exact:
        from megatron_ring.model.kernels.exact_mm_triton import exact_grouped_mm

        return exact_grouped_mm(x_nk, weight_eok, ends_e)
    return F.grouped_mm(x_nk, weight_eok.transpose(1, 2), offs=ends_e)


def _backward_rows(
    dy_nh: torch.Tensor,
    x_nh: torch.Tensor,
    gate_up_nf: torch.Tensor,
    weights_n: torch.Tensor,
    ends_e: torch.Tensor,
    gate_up_e: torch.Tensor,
    down_e: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradients by x [N, hidden], weights [N], gate_up and down of weight * expert(x)."""
    d_activation = F.grouped_mm(dy_nh, down_e, offs=ends_e)
    d_gate_up_nf, d_weights, activation = swiglu_backward(d_activation, gate_up_nf, weights_n, again=True)
    assert activation is not None
    del d_activation
    d_down = F.grouped_mm(dy_nh.t(), activation, offs=ends_e)
    del activation
    d_gate_up = F.grouped_mm(d_gate_up_nf.t(), x_nh, offs=ends_e)
    return F.grouped_mm(d_gate_up_nf, gate_up_e, offs=ends_e), d_weights, d_gate_up, d_down


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
        k = weights_tk.shape[1]
        x_nh = gather_rows(x_th, places.order, k)
        gate_up_nf = grouped_product(x_nh, gate_up_e, places.ends, exact)
        weights_n = weights_tk.flatten().index_select(0, places.order)
        y_nh = grouped_product(swiglu_forward(gate_up_nf, weights_n), down_e, places.ends, exact)
        ctx.places, ctx.plus = places, len(plus)
        kept = (x_th, None) if recompute else (x_nh, gate_up_nf)
        ctx.save_for_backward(*kept, weights_n, gate_up_e, down_e)
        return combine_rows(y_nh, places.back, *plus)

    @staticmethod
    def backward(ctx: Any, d_th: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, weights_n, gate_up_e, down_e = ctx.saved_tensors
        places: Places = ctx.places
        k = places.back.shape[1]
        if gate_up_nf is None:
            x_nh = gather_rows(x_nh, places.order, k)
            gate_up_nf = F.grouped_mm(x_nh, gate_up_e.transpose(1, 2), offs=places.ends)
        dy_nh = gather_rows(d_th, places.order, k)
        dx_nh, d_weights, d_gate_up, d_down = _backward_rows(
            dy_nh, x_nh, gate_up_nf, weights_n, places.ends, gate_up_e, down_e
        )
        del dy_nh, x_nh
        d_weights_tk = None if d_weights is None else d_weights.index_select(0, places.back.flatten()).view(-1, k)
        return combine_rows(dx_nh, places.back), d_weights_tk, None, d_gate_up, d_down, None, None, *[d_th] * ctx.plus


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
        gate_up_nf = grouped_product(x_nh, gate_up_e, ends_e, exact)
        ctx.save_for_backward(x_nh, None if recompute else gate_up_nf, weights_n, ends_e, gate_up_e, down_e)
        return grouped_product(swiglu_forward(gate_up_nf, weights_n), down_e, ends_e, exact)

    @staticmethod
    def backward(ctx: Any, dy_nh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, weights_n, ends_e, gate_up_e, down_e = ctx.saved_tensors
        if gate_up_nf is None:
            gate_up_nf = F.grouped_mm(x_nh, gate_up_e.transpose(1, 2), offs=ends_e)
        dx, d_weights, d_gate_up, d_down = _backward_rows(
            dy_nh.contiguous(), x_nh, gate_up_nf, weights_n, ends_e, gate_up_e, down_e
        )
        return dx, d_weights, None, d_gate_up, d_down, None, None
