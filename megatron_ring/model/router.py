"""Top-k softmax router with its load-balance and z-losses, in fp32.

The weights of a token's experts are softmax over ALL experts, then top-k, then renormalised to sum 1 (where k > 1). Losses
are means over routed (non-padding) tokens, summed over layers:

    B = sum_i E * f_i * P_i,   f_i = share of token-slots sent to expert i,  P_i = mean probability of expert i
    Z = mean over tokens of logsumexp(logits)^2

A model with expert biases (`ModelConfig.expert_bias`) chooses the largest of probability + bias. The weights are as above.
After a step, `RouterLosses` gives the tokens that each expert got, and `balance_bias` moves the biases by them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

from megatron_ring.config.declarations import moe_weights
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.model.kernels.router import (
    MOST_FEW,
    choose_experts,
    choose_with_bias,
    logits_gradient,
    share_and_figures,
    weigh_experts,
)
from megatron_ring.model.linear import add_product
from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import current_device


@dataclass
class RouterLosses:
    """What the routers of one model share: weights of the losses, and sums for the metrics of the current step.

    `gradient_scale` is (tokens that the step's loss divides by) / (tokens that the step routes), set by the training step
    before its first micro-batch. Gradients are divided once by the former at the end of the step (megatron-core's
    `calculate_per_token_loss`), so that the router losses come out as means over routed tokens.

    `counts_loads`: also add up, for each layer, the tokens that its experts got in training passes.

    `replay`: experts that a layout gives take the place of the router's own choice; otherwise they are compared only.
    """

    config: RouterLossConfig
    gradient_scale: float = 1.0
    sums: dict[int, torch.Tensor] = field(default_factory=dict)
    counts_loads: bool = False
    loads: dict[int, torch.Tensor] = field(default_factory=dict)  # by layer (from 1): fp64 [E], this rank's tokens
    replay: bool = False
    others: torch.Tensor | None = None  # [2]: slots of tokens with given experts, whose expert differs; all of them

    def start_step(self, gradient_scale: float) -> None:
        """Forget the last step's sums and set this one's scale."""
        self.gradient_scale = gradient_scale
        self.sums.clear()
        self.loads.clear()
        self.others = None

    def record(self, layer: int, figures: torch.Tensor) -> None:
        """Add the sums over a micro-batch's tokens of B, of Z and of 1, fp32 [3]."""
        self.sums[layer] = self.sums[layer] + figures if layer in self.sums else figures

    def count(self, layer: int, tokens_e: torch.Tensor) -> None:
        """Add the tokens of a micro-batch that each expert got, [E]."""
        if self.counts_loads:
            tokens_e = tokens_e.double()
            self.loads[layer] = self.loads[layer] + tokens_e if layer in self.loads else tokens_e

    def local_loads(self, layers: range, experts: int, device: torch.device) -> torch.Tensor:
        """fp64 [layers, experts]: what `count` added up on this rank, of the 0-based `layers`; zeros for others'."""
        found = torch.zeros(len(layers), experts, dtype=torch.float64, device=device)
        for layer, tokens_e in self.loads.items():
            found[layer - 1 - layers.start] = tokens_e
        return found

    def compare(self, experts_tk: torch.Tensor, given_tk: torch.Tensor, known_t: torch.Tensor) -> None:
        """Count, for the metrics, the given experts that are not among the router's own."""
        differ_tk = ~(given_tk[:, :, None] == experts_tk[:, None, :]).any(-1) & known_t[:, None]
        counts = torch.stack((differ_tk.sum(), known_t.sum() * given_tk.shape[1]))
        self.others = counts if self.others is None else self.others + counts

    def local_sums(self, device: torch.device) -> torch.Tensor:
        """fp64 [5]: sums over this rank's layers of B*tokens, Z*tokens and tokens, and what `compare` counted. Does not wait
        for the device."""
        found = torch.zeros(5, dtype=torch.float64, device=device)
        if self.sums:
            found[:3] = torch.stack(list(self.sums.values())).sum(0, dtype=torch.float64)
        if self.others is not None:
            found[3:] = self.others
        return found


@torch.no_grad()
def balance_bias(bias_e: torch.Tensor, tokens_e: torch.Tensor, rate: float) -> None:
    """Move the biases of one layer's experts, in place: up by `rate` where an expert got fewer tokens than the mean, down
    where it got more (arXiv 2408.15664, algorithm 1). The tokens [E] are those of the whole step, on all ranks alike."""
    bias_e.add_(rate * torch.sign(tokens_e.mean() - tokens_e))


class RingRouter(torch.nn.Module):
    """Chooses `experts_per_token` of `num_experts` experts for each token.

    Buffers: `expert_bias`, fp32 [E] where the model has biases, else None.
    """

    expert_bias: torch.Tensor | None
    optional_buffers = ("expert_bias",)  # a checkpoint from before the model had biases: they begin at 0

    def __init__(self, config: Any, losses: RouterLosses) -> None:
        super().__init__()
        self.config = config
        self.losses = losses
        self.layer_number = 0
        declared = moe_weights(config.ring_model)["router.weight"]
        self.weight = torch.nn.Parameter(torch.empty(declared.shape, dtype=config.params_dtype, device=current_device()))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        bias = torch.zeros(declared.shape[0], device=current_device()) if config.ring_model.expert_bias else None
        self.register_buffer("expert_bias", bias)

    def forward(
        self, hidden_th: torch.Tensor, padding_t: torch.Tensor | None, given: tuple[torch.Tensor, ...] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """hidden [T, hidden], padding bool [T] (True: not a real token), given as of `Routes` -> weights fp32 [T, k],
        experts int64 [T, k], logits fp32 [T, E] (without gradients), and hidden for the experts: see `linear_and_pass`."""
        if self._takes_few(hidden_th, given):
            from megatron_ring.model.kernels import router_triton

            k = self.config.moe_router_topk
            return (*router_triton.few(hidden_th, self.weight, k), hidden_th)
        losses = self.training and torch.is_grad_enabled()  # asked here: inside a Function gradients are off
        return _Route.apply(hidden_th, self.weight, self, padding_t, losses, given)

    def _takes_few(self, hidden_th: torch.Tensor, given: tuple[torch.Tensor, ...] | None) -> bool:
        """Whether they are a decoding step's tokens, which have kernels of their own."""
        if torch.is_grad_enabled() or given is not None or self.expert_bias is not None or self.config.ring_exact:
            return False
        short = hidden_th.is_cuda and hidden_th.dtype is torch.bfloat16
        return short and 0 < hidden_th.shape[0] <= MOST_FEW and hidden_th.is_contiguous()

    def share_of_slots(self, sums: torch.Tensor) -> torch.Tensor:
        """Record the sums of one micro-batch (see `choose_experts`) for the metrics; the share of token-slots that each
        expert got, fp32 [E]."""
        every = sums
        if self.config.sequence_parallel:  # the micro-batch's tokens lie on several TP ranks: count them all
            every = collectives.sum_over_tensor(sums.clone())
        share_e, figures = share_and_figures(every, sums, self.config.moe_router_topk)
        self.losses.record(self.layer_number, figures)
        self.losses.count(self.layer_number, sums[: share_e.numel()])
        return share_e


class _Route(torch.autograd.Function):
    """Logits in fp32, chosen experts and weights; its backward pass adds the gradients of the router's losses.

    Where hidden states and weight are bf16, their products are exact in fp32: tensor cores make the same numbers, and a
    gradient of the logits is two bf16 numbers that add up to it (to 2^-17).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_th: torch.Tensor,
        weight_eh: torch.Tensor,
        router: RingRouter,
        padding_t: torch.Tensor | None,
        losses: bool,
        given: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        short = hidden_th.is_cuda and hidden_th.dtype is torch.bfloat16
        if router.config.ring_exact:
            from megatron_ring.model.kernels.exact_mm_triton import exact_mm

            logits_te = exact_mm(hidden_th, weight_eh, out_dtype=torch.float32)
        elif short:
            from megatron_ring.model.kernels import router_triton

            logits_te = router_triton.logits(hidden_th, weight_eh)
        else:
            logits_te = hidden_th.float() @ weight_eh.float().t()
        k, bias_e = router.config.moe_router_topk, router.expert_bias
        if bias_e is None:
            weights_tk, experts_tk, sums = choose_experts(logits_te, k, padding_t, losses)
        else:
            weights_tk, experts_tk, sums = choose_with_bias(logits_te, bias_e, k, padding_t, losses)
        if given is not None and losses:
            router.losses.compare(experts_tk, *given)
        if given is not None and router.losses.replay:
            experts_tk = torch.where(given[1][:, None], given[0].long(), experts_tk)
            weights_tk, experts_tk, sums = weigh_experts(logits_te, experts_tk, padding_t)
        share_e = router.share_of_slots(sums) if losses else None
        ctx.save_for_backward(hidden_th, weight_eh, logits_te, weights_tk, experts_tk, padding_t, share_e)
        # Not the router: tensors that megatron-core's dispatcher keeps would hold the model through it.
        weights, scale = router.losses.config, router.losses.gradient_scale
        ctx.balance, ctx.z, ctx.short = weights.balance * scale, weights.z * scale, short
        ctx.mark_non_differentiable(experts_tk, logits_te)
        ctx.set_materialize_grads(False)
        return weights_tk, experts_tk, logits_te, hidden_th

    @staticmethod
    def backward(
        ctx: Any, d_weights_tk: torch.Tensor | None, _: Any, __: Any, d_hidden_th: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        hidden_th, weight_eh, logits_te, weights_tk, experts_tk, padding_t, share_e = ctx.saved_tensors
        if d_weights_tk is None:
            d_weights_tk = torch.zeros_like(weights_tk)
        scale = MoEAuxLossAutoScaler.main_loss_backward_scale  # megatron-core's schedules set it
        scale = torch.ones(1, device=logits_te.device) if scale is None else scale.to(logits_te.device)
        d_logits = logits_gradient(
            logits_te, (weights_tk, experts_tk), d_weights_tk, padding_t, share_e, scale, ctx.balance, ctx.z,
            split=hidden_th.dtype if ctx.short else None,
        )  # fmt: skip
        if not ctx.short:
            by_router = (d_logits @ weight_eh.float()).to(hidden_th.dtype)
            d_hidden = by_router if d_hidden_th is None else d_hidden_th.add_(by_router)
            return d_hidden, (d_logits.t() @ hidden_th.float()).to(weight_eh.dtype), None, None, None, None
        d_weight = torch.mm(d_logits.t(), hidden_th, out_dtype=torch.float32).view(2, *weight_eh.shape).sum(0)
        d_hidden = add_product(d_hidden_th, d_logits, torch.cat((weight_eh, weight_eh)))
        return d_hidden, d_weight.to(weight_eh.dtype), None, None, None, None
