"""Log-probability of a target and entropy of the distribution, over a vocabulary split across tensor-parallel ranks.

Suffixes: t tokens, v this rank's part of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.parallel import collectives


class _LogProbsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_tv: torch.Tensor, targets_t: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        logits = logits_tv.float()
        maximum = collectives.max_over_tensor(logits.max(dim=-1).values)
        logits = logits - maximum[:, None]
        exp = logits.exp()
        # Three sums in one message: normaliser, sum of exp * logit (for the entropy), the target's logit.
        local = targets_t - first
        owned = (local >= 0) & (local < logits.shape[1])
        target_logit = logits.gather(1, local.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        sums = torch.stack((exp.sum(-1), (exp * logits).sum(-1), torch.where(owned, target_logit, 0.0)))
        normaliser, weighted, target = collectives.sum_over_tensor(sums)
        log_normaliser = normaliser.log()
        entropy_t = log_normaliser - weighted / normaliser
        log_probs_tv = logits - log_normaliser[:, None]
        ctx.save_for_backward(log_probs_tv, entropy_t, local, owned)
        ctx.dtype = logits_tv.dtype
        return target - log_normaliser, entropy_t

    @staticmethod
    def backward(ctx: Any, grad_logprob: torch.Tensor, grad_entropy: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """d logp/d logit_j = [j = target] - p_j;  dH/d logit_j = -p_j (log p_j + H)."""
        log_probs_tv, entropy_t, local, owned = ctx.saved_tensors
        p = log_probs_tv.exp()
        grad = -p * (grad_logprob[:, None] + grad_entropy[:, None] * (log_probs_tv + entropy_t[:, None]))
        at_target = torch.where(owned, grad_logprob, 0.0)
        grad.scatter_add_(1, local.clamp(0, p.shape[1] - 1)[:, None], at_target[:, None])
        return grad.to(ctx.dtype), None, None


def logprobs_and_entropy(
    logits_tv: torch.Tensor, targets_t: torch.Tensor, tensor_rank: int = 0, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(target) and the entropy of p = softmax(logits / temperature), natural logarithms.

    Args:
        logits_tv: [T, vocab/TP], any float dtype; computed in fp32.
        targets_t: int64 [T], global token ids.
        tensor_rank: which part of the vocabulary this rank holds.
        temperature: softmax temperature, above 0.

    Returns:
        log-probs fp32 [T] and entropies fp32 [T] (nats), equal on every tensor-parallel rank, differentiable.
    """
    if temperature != 1.0:
        logits_tv = logits_tv / temperature
    return _LogProbsAndEntropy.apply(logits_tv, targets_t, tensor_rank * logits_tv.shape[1])
