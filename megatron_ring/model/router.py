"""Top-k softmax router with its load-balance and z-losses, in fp32.

The weights of a token's experts are softmax over ALL experts, then top-k, then renormalised to sum 1 (where k > 1). Losses
are means over routed (non-padding) tokens, summed over layers:

    B = sum_i E * f_i * P_i,   f_i = share of token-slots sent to expert i,  P_i = mean probability of expert i
    Z = mean over tokens of logsumexp(logits)^2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

from megatron_ring.config import RouterLossConfig
from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import current_device


@dataclass
class RouterLosses:
    """What the routers of one model share: weights of the losses, and sums for the metrics of the current step.

    `gradient_scale` is (tokens that the step's loss divides by) / (tokens that the step routes), set by the training step
    before its first micro-batch. Gradients are divided once by the former at the end of the step (megatron-core's
    `calculate_per_token_loss`), so that the router losses come out as means over routed tokens.
    """

    config: RouterLossConfig
    gradient_scale: float = 1.0
    balance_sums: dict[int, torch.Tensor] = field(default_factory=dict)
    z_sums: dict[int, torch.Tensor] = field(default_factory=dict)
    token_sums: dict[int, torch.Tensor] = field(default_factory=dict)

    def start_step(self, gradient_scale: float) -> None:
        """Forget the last step's sums and set this one's scale."""
        self.gradient_scale = gradient_scale
        for sums in (self.balance_sums, self.z_sums, self.token_sums):
            sums.clear()

    def record(self, layer: int, balance_sum: torch.Tensor, z_sum: torch.Tensor, tokens: torch.Tensor) -> None:
        for sums, value in ((self.balance_sums, balance_sum), (self.z_sums, z_sum), (self.token_sums, tokens)):
            sums[layer] = sums.get(layer, 0) + value.detach()

    def local_sums(self, device: torch.device) -> torch.Tensor:
        """fp64 [3]: sums over this rank's layers of B*tokens, Z*tokens and tokens."""
        parts = [sum(sums.values()) if sums else 0.0 for sums in (self.balance_sums, self.z_sums, self.token_sums)]
        return torch.tensor([float(part) for part in parts], dtype=torch.float64, device=device)


class RingRouter(torch.nn.Module):
    """Chooses `experts_per_token` of `num_experts` experts for each token."""

    def __init__(self, config: Any, losses: RouterLosses) -> None:
        super().__init__()
        self.config = config
        self.losses = losses
        self.layer_number = 0
        self.weight = torch.nn.Parameter(
            torch.empty(config.num_moe_experts, config.hidden_size, dtype=config.params_dtype, device=current_device())
        )
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(
        self, hidden_th: torch.Tensor, padding_t: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden [T, hidden], padding bool [T] (True: not a real token) -> weights fp32 [T, k], experts int64 [T, k],
        logits fp32 [T, E]."""
        logits_te = _RouterLogits.apply(hidden_th, self.weight)
        top_logits, experts_tk = torch.topk(logits_te, self.config.moe_router_topk, dim=-1)
        # Softmax over all, top-k, renormalised: a softmax over the k. A single weight is not renormalised (as published: it
        # would be 1, and the router would learn nothing).
        normaliser = logits_te if self.config.moe_router_topk == 1 else top_logits
        weights_tk = (top_logits - normaliser.logsumexp(dim=-1, keepdim=True)).exp()
        if self.training and torch.is_grad_enabled():
            weights_tk = self._attach_losses(logits_te, weights_tk, experts_tk, padding_t)
        return weights_tk, experts_tk, logits_te

    def _attach_losses(
        self,
        logits_te: torch.Tensor,
        weights_tk: torch.Tensor,
        experts_tk: torch.Tensor,
        padding_t: torch.Tensor | None,
    ) -> torch.Tensor:
        num_experts, k = logits_te.shape[1], experts_tk.shape[1]
        valid_t = torch.ones_like(logits_te[:, 0]) if padding_t is None else (~padding_t).to(logits_te.dtype)
        # Under sequence parallelism the micro-batch's tokens lie on several TP ranks: count them all.
        counts = torch.zeros(num_experts + 1, device=logits_te.device)
        counts.scatter_add_(0, experts_tk.flatten(), valid_t.repeat_interleave(k))
        counts[-1] = valid_t.sum()
        if self.config.sequence_parallel:
            collectives.sum_over_tensor(counts)
        tokens = counts[-1].clamp(min=1.0)
        share_e = counts[:-1] / (tokens * k)
        probability_sums_e = (torch.softmax(logits_te, dim=-1) * valid_t[:, None]).sum(dim=0)
        # Local parts of B * tokens and Z * tokens; summed over TP ranks they give the micro-batch's.
        balance_sum = num_experts * (share_e * probability_sums_e).sum()
        z_sum = (torch.logsumexp(logits_te, dim=-1).square() * valid_t).sum()
        self.losses.record(self.layer_number, balance_sum, z_sum, valid_t.sum())
        config = self.losses.config
        loss = (config.balance * balance_sum + config.z * z_sum) * self.losses.gradient_scale
        return MoEAuxLossAutoScaler.apply(weights_tk, loss)


class _RouterLogits(torch.autograd.Function):
    """hidden [T, h] @ weight [E, h]^T in fp32. Where both are bf16, their products are exact in fp32: tensor cores make the
    same numbers; a gradient of the logits is two bf16 numbers that add up to it (to 2^-17)."""

    @staticmethod
    def forward(ctx: Any, hidden_th: torch.Tensor, weight_eh: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden_th, weight_eh)
        if _short(hidden_th):
            return torch.mm(hidden_th, weight_eh.t(), out_dtype=torch.float32)
        return hidden_th.float() @ weight_eh.float().t()

    @staticmethod
    def backward(ctx: Any, d_te: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden_th, weight_eh = ctx.saved_tensors
        if not _short(hidden_th):
            d_hidden = (d_te @ weight_eh.float()).to(hidden_th.dtype)
            return d_hidden, (d_te.t() @ hidden_th.float()).to(weight_eh.dtype)
        high = d_te.to(hidden_th.dtype)
        both = torch.cat((high, (d_te - high).to(hidden_th.dtype)), dim=1)
        d_weight = torch.mm(both.t(), hidden_th, out_dtype=torch.float32).view(2, *weight_eh.shape).sum(0)
        return both @ torch.cat((weight_eh, weight_eh)), d_weight.to(weight_eh.dtype)


def _short(x: torch.Tensor) -> bool:
    return x.is_cuda and x.dtype is torch.bfloat16
