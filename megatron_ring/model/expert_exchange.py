"""Routed and shared experts of a layer whose experts lie on several ranks, as one differentiable operation, so that rows
travel while shared experts (and, in the backward pass, gradients of weights) are computed.

Suffixes: t tokens, k experts of a token, n rows that this rank's experts get, h hidden, f expert width, e experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from megatron_ring.model.kernels.experts import local_experts
from megatron_ring.model.kernels.fp8 import Weight, widened
from megatron_ring.model.kernels.grouped import rows_product
from megatron_ring.model.kernels.rows import combine_rows, gather_rows, sort_by_expert, spread_rows
from megatron_ring.model.kernels.swiglu import swiglu_backward, swiglu_forward
from megatron_ring.parallel.exchange import (
    PendingPlan,
    exchange_rows,
    expert_rank,
    expert_ranks,
    gather_over_experts,
    scatter_sum_over_experts,
)

Shared = Callable[[torch.Tensor], torch.Tensor]


def exchanged_experts(
    x_th: torch.Tensor,
    weights_tk: torch.Tensor,
    experts_tk: torch.Tensor,
    residual_th: torch.Tensor | None,
    gate_up_e: Weight,
    down_e: Weight,
    shared: Shared | None,
    recompute: bool,
    exact: bool,
) -> torch.Tensor:
    """residual + shared(x) + sum over k of weight * expert(x), with experts_tk int64 [T, k] numbered over all ranks.

    Args:
        gate_up_e: [E_local, 2f, hidden]; down_e: [E_local, hidden, f]; of this rank's experts.
        shared: [T, 1, hidden] -> the same; its parameters get their gradients in the backward pass.
        recompute: make the first product again in the backward pass instead of keeping [N, 2f].
        exact: the forward's products are those of --exact.
    """
    backward = torch.is_grad_enabled()  # asked here: inside a Function gradients are off
    gate_up_e, down_e = widened(gate_up_e, x_th.dtype), widened(down_e, x_th.dtype)
    return _ExchangedExperts.apply(
        x_th, weights_tk, residual_th, gate_up_e, down_e, experts_tk, shared, recompute, exact, backward
    )


def gathered_experts(
    x_th: torch.Tensor,
    weights_tk: torch.Tensor,
    experts_tk: torch.Tensor,
    residual_th: torch.Tensor | None,
    gate_up_e: Weight,
    down_e: Weight,
    shared: Shared | None,
) -> torch.Tensor:
    """What `exchanged_experts` computes, without gradients, for few tokens and the same number on every rank: each rank sees
    all ranks' tokens, and their parts are added up. No shape depends on the routing, so that a CUDA graph can hold it."""
    ranks, local, k = expert_ranks(), down_e.shape[0], experts_tk.shape[1]
    x_all = gather_over_experts(x_th.contiguous())
    routing = gather_over_experts(torch.cat((weights_tk, experts_tk.to(weights_tk.dtype)), dim=1))
    weights_all, experts_all = routing[:, :k].contiguous(), routing[:, k:].long() - expert_rank() * local
    if x_th.is_cuda:
        from megatron_ring.model.kernels import few_tokens_triton, rows_triton

        few_tokens_triton.check_slots(experts_all.numel())
        y_nh, back = few_tokens_triton.sorted_outputs(x_all, weights_all, experts_all, gate_up_e, down_e, share=1 / ranks)
        parts = rows_triton.combine(y_nh, back, (), torch.float32)
    else:
        here = (experts_all >= 0) & (experts_all < local)
        places = sort_by_expert(torch.where(here, experts_all, 0), local)
        wide = widened(gate_up_e, x_th.dtype), widened(down_e, x_th.dtype)
        parts = local_experts(x_all, torch.where(here, weights_all, 0.0), places, *wide)
    out = scatter_sum_over_experts(parts)
    if shared is not None:
        out += shared(x_th[:, None]).view_as(x_th)
    if residual_th is not None:
        out += residual_th
    return out.to(x_th.dtype)


class _ExchangedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_th: torch.Tensor,
        weights_tk: torch.Tensor,
        residual_th: torch.Tensor | None,
        gate_up_e: torch.Tensor,
        down_e: torch.Tensor,
        experts_tk: torch.Tensor,
        shared: Shared | None,
        recompute: bool,
        exact: bool,
        backward: bool,
    ) -> torch.Tensor:
        local = gate_up_e.shape[0]
        places = sort_by_expert(experts_tk, local * expert_ranks())
        pending = PendingPlan(places.ends)
        x_send = spread_rows(x_th, places)
        weights_send = weights_tk.flatten().index_select(0, places.order)
        plan = pending.wait()
        x_received, moving = exchange_rows(x_send, plan.send, plan.receive)
        weights_received, moving_weights = exchange_rows(weights_send, plan.send, plan.receive)
        plus = [] if residual_th is None else [residual_th]
        if shared is not None:
            with torch.set_grad_enabled(backward):
                ctx.shared_in = x_th.detach().requires_grad_(backward)
                ctx.shared_out = shared(ctx.shared_in[:, None])
            plus.append(ctx.shared_out.detach().view_as(x_th))
        here = sort_by_expert(plan.experts[:, None], local)
        moving.wait()
        moving_weights.wait()
        del x_send
        x_nh = gather_rows(x_received, here.order)
        del x_received
        weights_n = weights_received.index_select(0, here.order)
        gate_up_nf = _grouped(x_nh, gate_up_e.transpose(1, 2), here.ends, exact)
        y_nh = _grouped(swiglu_forward(gate_up_nf, weights_n), down_e.transpose(1, 2), here.ends, exact)
        y_back, moving = exchange_rows(gather_rows(y_nh, here.back[:, 0]), plan.receive, plan.send)
        moving.wait()
        if backward:
            ctx.places, ctx.here, ctx.plan = places, here, plan
            ctx.has_shared, ctx.residual = shared is not None, residual_th is not None
            ctx.save_for_backward(x_nh, None if recompute else gate_up_nf, weights_n, gate_up_e, down_e)
        return combine_rows(y_back, places.back, *plus)

    @staticmethod
    def backward(ctx: Any, d_th: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, weights_n, gate_up_e, down_e = ctx.saved_tensors
        places, here, plan = ctx.places, ctx.here, ctx.plan
        d_th = d_th.contiguous()
        dy_send = spread_rows(d_th, places)
        dy_received, moving = exchange_rows(dy_send, plan.send, plan.receive)
        plus = []
        if ctx.has_shared:
            torch.autograd.backward(ctx.shared_out, d_th.view_as(ctx.shared_out))
            plus.append(ctx.shared_in.grad)
            ctx.shared_in = ctx.shared_out = None
        if gate_up_nf is None:
            gate_up_nf = _grouped(x_nh, gate_up_e.transpose(1, 2), here.ends)
        moving.wait()
        dy_nh = gather_rows(dy_received, here.order)
        del dy_send, dy_received
        d_activation = _grouped(dy_nh, down_e, here.ends)
        d_gate_up_nf, d_weights, activation = swiglu_backward(d_activation, gate_up_nf, weights_n, again=True)
        assert activation is not None and d_weights is not None
        del d_activation
        dx_nh = _grouped(d_gate_up_nf, gate_up_e, here.ends)
        dx_back, moving = exchange_rows(gather_rows(dx_nh, here.back[:, 0]), plan.receive, plan.send)
        d_weights = d_weights.index_select(0, here.back[:, 0])
        d_weights_back, moving_weights = exchange_rows(d_weights, plan.receive, plan.send)
        # Nothing waits for the gradients of weights: they are made while rows travel.
        d_down = _weight_gradient(dy_nh, activation, down_e, here.ends)
        d_gate_up = _weight_gradient(d_gate_up_nf, x_nh, gate_up_e, here.ends)
        moving.wait()
        moving_weights.wait()
        dx_th = combine_rows(dx_back, places.back, *plus)
        d_weights_tk = d_weights_back.index_select(0, places.back.flatten()).view(places.back.shape)
        return dx_th, d_weights_tk, d_th if ctx.residual else None, d_gate_up, d_down, *[None] * 5


def _grouped(x_na: torch.Tensor, weight_eab: torch.Tensor, ends_e: torch.Tensor, exact: bool = False) -> torch.Tensor:
    """Each expert's rows times its matrix; there may be no rows at all."""
    if x_na.shape[0] == 0:
        return x_na.new_empty(0, weight_eab.shape[2])
    if exact:
        return rows_product(x_na, weight_eab.transpose(1, 2), ends_e, transposed=True, exact=True)
    return F.grouped_mm(x_na, weight_eab, offs=ends_e)


def _weight_gradient(dy_nb: torch.Tensor, x_na: torch.Tensor, weight: torch.Tensor, ends_e: torch.Tensor) -> torch.Tensor:
    """dy^T x of each expert's rows; 0 for an expert without any."""
    if x_na.shape[0] == 0:
        return torch.zeros_like(weight)
    return F.grouped_mm(dy_nb.t(), x_na, offs=ends_e)
