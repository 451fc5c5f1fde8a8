"""Layers of Transformer Engine's modules, with the parameters of the native ones. Imported only for `--layer-impl te`.

Norms, dense projections, attention, permutation and the experts' products are Transformer Engine's; RoPE, SwiGLU, router and
head are ours in both implementations. Its grouped products take the number of rows of each expert from the host, so every
MoE layer waits for the device once.

Suffixes: t tokens, k experts of a token, n token-slots sorted by expert, h hidden, f expert width, e experts, d head
dimension, g KV heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformer_engine.pytorch as engine
from transformer_engine.pytorch.cpp_extensions import general_grouped_gemm

from megatron_ring.model.experts import GroupedExperts, Plus
from megatron_ring.model.kernels.fp8 import Weight
from megatron_ring.model.kernels.rope import split_and_rotate
from megatron_ring.model.kernels.swiglu import swiglu_backward, swiglu_forward
from megatron_ring.model.layout import PackedLayout, TokenLayout
from megatron_ring.model.norm import RMSNorm
from megatron_ring.parallel.device import current_device


class EngineNorm(engine.RMSNorm):
    """As `norm.RMSNorm`."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__(
            hidden_size,
            eps=eps,
            sequence_parallel=config.sequence_parallel,
            dtype=config.params_dtype,
            device=current_device(),
        )

    def and_pass(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x, x for the residual path)."""
        return self(x), x

    def of_sum(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual)."""
        total = x + residual
        return self(total), total


class EngineAttention:
    """Causal attention over packed sequences; what reads a KV cache attends in its own way. Not a module: it has no
    parameters and nothing to save."""

    def __init__(self, config: Any) -> None:
        tensor = config.tensor_model_parallel_size
        self.core = engine.DotProductAttention(
            config.num_attention_heads // tensor, config.kv_channels, num_gqa_groups=config.num_query_groups // tensor
        )

    def __call__(
        self, layout: TokenLayout, layer: int, qkv_tgpd: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        if not isinstance(layout, PackedLayout) or not any(layout.lengths):
            return layout.attend_unsplit(layer, qkv_tgpd, rope, exact=False)
        q_thd, k_tgd, v_tgd = split_and_rotate(qkv_tgpd, *rope)
        tokens, longest = sum(layout.lengths), max(layout.lengths)
        q, k, v = (x[:tokens] for x in (q_thd, k_tgd, v_tgd))
        if all(length == longest for length in layout.lengths):
            sequences = (x.unflatten(0, (-1, longest)) for x in (q, k, v))
            out = self.core(*sequences, qkv_format="bshd", attn_mask_type="causal")
        else:
            starts = layout.starts()
            bounds = {"cu_seqlens_q": starts, "cu_seqlens_kv": starts, "max_seqlen_q": longest, "max_seqlen_kv": longest}
            out = self.core(q, k, v, qkv_format="thd", attn_mask_type="padding_causal", **bounds)
        out = out.view(q.shape)
        behind = q_thd.shape[0] - tokens
        return torch.nn.functional.pad(out, (0, 0, 0, 0, 0, behind)) if behind else out


class EngineExperts(GroupedExperts):
    """As GroupedExperts. Without gradients (sampling) it is that: nothing waits for the device."""

    exchanges = False

    def forward(
        self, x_nh: torch.Tensor, counts_e: torch.Tensor, weights_n: torch.Tensor,
        others: tuple[Weight, Weight] | None = None,
    ) -> torch.Tensor:  # fmt: skip
        if x_nh.shape[0] == 0 or not torch.is_grad_enabled():
            return super().forward(x_nh, counts_e, weights_n, others)
        counts: list[int] = counts_e.tolist()
        return _Experts.apply(x_nh, weights_n, counts, self.gate_up.flatten(1, 2), self.down, self.recompute)

    def route_locally(
        self, x_th: torch.Tensor, weights_tk: torch.Tensor, experts_tk: torch.Tensor, plus: Plus,
        others: tuple[Weight, Weight] | None = None, idle_t: torch.Tensor | None = None, norm: RMSNorm | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        if not torch.is_grad_enabled():
            return super().route_locally(x_th, weights_tk, experts_tk, plus, others, idle_t, norm)
        weights_te = weights_tk.new_zeros(x_th.shape[0], self.num_local_experts).scatter(1, experts_tk, weights_tk)
        routed_te = torch.zeros_like(weights_te, dtype=torch.bool).scatter_(1, experts_tk, True)
        x_nh, weights_n, rows = engine.moe_permute_with_probs(x_th, weights_te, routed_te, experts_tk.numel())
        y_nh = self(x_nh, routed_te.sum(dim=0), weights_n)
        out = engine.moe_unpermute(y_nh, rows, restore_shape=x_th.shape)
        for other in plus():
            out = out + other
        return out, None


class _Experts(torch.autograd.Function):
    """weight * expert(x) of rows sorted by expert, as `kernels.experts.sorted_experts`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_nh: torch.Tensor,
        weights_n: torch.Tensor,
        counts: list[int],
        gate_up_e: torch.Tensor,
        down_e: torch.Tensor,
        recompute: bool,
    ) -> torch.Tensor:
        weights_n = weights_n.float()
        gate_up_nf = _by_weight(x_nh, gate_up_e, counts, "TN")
        ctx.counts = counts
        ctx.save_for_backward(x_nh, None if recompute else gate_up_nf, weights_n, gate_up_e, down_e)
        return _by_weight(swiglu_forward(gate_up_nf, weights_n), down_e, counts, "TN")

    @staticmethod
    def backward(ctx: Any, dy_nh: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_nh, gate_up_nf, weights_n, gate_up_e, down_e = ctx.saved_tensors
        counts: list[int] = ctx.counts
        dy_nh = dy_nh.contiguous()
        if gate_up_nf is None:
            gate_up_nf = _by_weight(x_nh, gate_up_e, counts, "TN")
        d_activation = _by_weight(dy_nh, down_e, counts, "NN")
        d_gate_up_nf, d_weights, activation = swiglu_backward(d_activation, gate_up_nf, weights_n, again=True)
        assert activation is not None
        d_down = _weight_gradient(activation, dy_nh, down_e, counts)
        d_gate_up = _weight_gradient(x_nh, d_gate_up_nf, gate_up_e, counts)
        return _by_weight(d_gate_up_nf, gate_up_e, counts, "NN"), d_weights, None, d_gate_up, d_down, None


def _by_weight(x_na: torch.Tensor, weight_e: torch.Tensor, counts: Sequence[int], layout: str) -> torch.Tensor:
    """Each expert's rows of x times its weight: transposed ("TN", weight [E, b, a]) or not ("NN", weight [E, a, b])."""
    out = x_na.new_empty(x_na.shape[0], weight_e.shape[1 if layout == "TN" else 2])
    _multiply(list(weight_e), list(x_na.split(counts)), [out], layout, counts, single_output=True)
    return out


def _weight_gradient(x_na: torch.Tensor, dy_nb: torch.Tensor, weight_e: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """dy^T x of each expert's rows, of the weight's shape [E, b, a]; 0 for an expert without rows."""
    out = torch.empty_like(weight_e)
    _multiply(list(x_na.split(counts)), list(dy_nb.split(counts)), list(out), "NT", counts, single_output=False)
    return out


def _multiply(
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    out: list[torch.Tensor],
    layout: str,
    counts: Sequence[int],
    single_output: bool,
) -> None:
    quantizers = [None] * len(a)
    general_grouped_gemm(
        a, b, out, quantizers, out[0].dtype, layout=layout, m_splits=list(counts), single_output=single_output
    )
