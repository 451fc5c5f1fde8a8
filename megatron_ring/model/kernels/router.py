"""From router logits to chosen experts, their weights and the sums that the router's losses need; and the gradient of both.

With p = softmax(logits), s_e the share of token-slots of expert e (a constant), L = logsumexp(logits) and w the weights:

    d/d logit_e of sum_t E sum_e s_e p_te = E p_e (s_e - sum_j s_j p_j),    of sum_t L^2 = 2 L p_e
    d/d logit_e of sum_k g_k w_k = w_e (g_e - sum_k w_k g_k) for chosen experts; of one weight alone g w ([e] - p_e)
"""

from __future__ import annotations

import torch

Chosen = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
MOST_FEW = 1024  # tokens of a decoding step, whose logits are made by parts; each 16 of them read all weights of the router


def choose_experts(logits_te: torch.Tensor, k: int, padding_t: torch.Tensor | None, losses: bool) -> Chosen:
    """The `k` largest of logits fp32 [T, E] of each token.

    Args:
        padding_t: bool [T], True where a token is none and counts in no sum.
        losses: whether the sums are wanted.

    Returns:
        weights fp32 [T, k]: softmax over all, then the chosen ones renormalised to 1 (a single one is not: as published,
        and its router would learn nothing); experts int64 [T, k]; sums fp32 [2E + 2]: how often each expert was chosen, its
        probability, the squared logsumexp, the tokens.
    """
    if logits_te.is_cuda:
        from megatron_ring.model.kernels import router_triton

        return router_triton.forward(logits_te, k, padding_t, losses)
    top, experts_tk = torch.topk(logits_te, k, dim=-1)
    # Softmax over so few columns is slow on the CPU; exp of a difference is not.
    weights_tk = (top - top[:, :1]).exp_()
    weights_tk /= weights_tk.sum(-1, keepdim=True)
    if k > 1 and not losses:
        return weights_tk, experts_tk, logits_te.new_zeros(1)
    lse_t = torch.logsumexp(logits_te, dim=-1)
    if k == 1:
        weights_tk = (top - lse_t[:, None]).exp()
    return weights_tk, experts_tk, _sums(logits_te, lse_t, experts_tk, padding_t)


def choose_with_bias(
    logits_te: torch.Tensor, bias_e: torch.Tensor, k: int, padding_t: torch.Tensor | None, losses: bool
) -> Chosen:
    """As `choose_experts`, for the `k` experts with the largest softmax(logits) + bias, fp32 [E]. The bias has no part in
    the weights (arXiv 2408.15664)."""
    scores_te = torch.softmax(logits_te, dim=-1) + bias_e
    return weigh_experts(logits_te, torch.topk(scores_te, k, dim=-1).indices, padding_t, losses)


def weigh_experts(
    logits_te: torch.Tensor, experts_tk: torch.Tensor, padding_t: torch.Tensor | None, losses: bool = True
) -> Chosen:
    """As `choose_experts`, for experts that something else has chosen."""
    alone = experts_tk.shape[1] == 1
    chosen_tk = logits_te.gather(1, experts_tk)
    if not losses and not alone:
        return torch.softmax(chosen_tk, dim=-1), experts_tk, logits_te.new_zeros(1)
    lse_t = torch.logsumexp(logits_te, dim=-1)
    weights_tk = (chosen_tk - lse_t[:, None]).exp() if alone else torch.softmax(chosen_tk, dim=-1)
    return weights_tk, experts_tk, _sums(logits_te, lse_t, experts_tk, padding_t)


def _sums(
    logits_te: torch.Tensor, lse_t: torch.Tensor, experts_tk: torch.Tensor, padding_t: torch.Tensor | None
) -> torch.Tensor:
    k = experts_tk.shape[1]
    valid_t = torch.ones_like(lse_t) if padding_t is None else (~padding_t).to(lse_t.dtype)
    counts_e = torch.zeros_like(logits_te[0]).scatter_add_(0, experts_tk.flatten(), valid_t[:, None].expand(-1, k).flatten())
    p_sums_e = valid_t @ (logits_te - lse_t[:, None]).exp()
    return torch.cat((counts_e, p_sums_e, (lse_t.square() @ valid_t)[None], valid_t.sum()[None]))


def share_and_figures(every: torch.Tensor, here: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of token-slots that each expert got, fp32 [E], and the sums over this rank's tokens of B, of Z and of 1,
    fp32 [3], from `choose_experts`' sums over the micro-batch's tokens on all ranks and on this one."""
    if here.is_cuda:
        from megatron_ring.model.kernels import router_triton

        return router_triton.share(every, here, k)
    experts = here.numel() // 2 - 1
    share_e = every[:experts] / (every[-1].clamp(min=1.0) * k)
    return share_e, torch.stack((experts * (share_e @ here[experts:-2]), here[-2], here[-1]))


def logits_gradient(
    logits_te: torch.Tensor,
    chosen: tuple[torch.Tensor, torch.Tensor],
    d_weights_tk: torch.Tensor,
    padding_t: torch.Tensor | None,
    share_e: torch.Tensor | None,
    scale: torch.Tensor,
    balance: float,
    z: float,
    split: torch.dtype | None = None,
) -> torch.Tensor:
    """Gradient by the logits of (a loss by the weights) + scale * (balance * sum_t E sum_e s_e p_te + z * sum_t L^2).

    Args:
        chosen: weights and experts, as `choose_experts` gave them.
        d_weights_tk: fp32 [T, k].
        share_e: fp32 [E], or None where the losses have no part.
        scale: fp32, one element.
        split: on CUDA, return two numbers of this dtype side by side, [T, 2E], whose sum it is to twice their precision.

    Returns:
        fp32 [T, E], or as `split` says.
    """
    weights_tk, experts_tk = chosen
    if logits_te.is_cuda:
        from megatron_ring.model.kernels import router_triton

        return router_triton.backward(
            logits_te, weights_tk, experts_tk, d_weights_tk.contiguous(), padding_t, share_e, scale, balance, z, split
        )
    alone = weights_tk.shape[1] == 1
    lse_t = torch.logsumexp(logits_te, dim=-1, keepdim=True)
    p_te = (logits_te - lse_t).exp_()
    weighted_tk = weights_tk * d_weights_tk
    if alone:
        out = (-weighted_tk * p_te).scatter_add_(1, experts_tk, weighted_tk)
    else:
        by_weight = weighted_tk - weights_tk * weighted_tk.sum(-1, keepdim=True)
        out = torch.zeros_like(logits_te).scatter_(1, experts_tk, by_weight)
    if share_e is not None:
        by_balance = (share_e - (p_te @ share_e)[:, None]).mul_(balance * logits_te.shape[1])
        by_z = 2.0 * z * lse_t
        scale_t = scale if padding_t is None else scale * (~padding_t)[:, None]
        out += by_balance.add_(by_z).mul_(p_te).mul_(scale_t)
    return out
