"""Log-probability of a target and entropy of the distribution, over a vocabulary split across tensor-parallel ranks.

Suffixes: c tokens, v this rank's part of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_ring.parallel import collectives

IMPOSSIBLE = -1e30  # a logit whose probability is exactly 0; finite, so that 0 * logit is 0


@dataclass(frozen=True)
class TokenStatistics:
    """What is known of each token's distribution softmax(logits / temperature), equal on every tensor-parallel rank.

    Attributes:
        logprobs: fp32 [C], of the target, in nats.
        entropies: fp32 [C], in nats.
        log_normaliser: fp32 [C], so that log p_j = logit_j / temperature - log_normaliser.
        columns: int64 [C], the target's column, counted from this rank's first; it may be another rank's.
        temperature: above 0; float64 [C] where rows differ.
        probabilities: on the CPU [C, vocab/TP], within this rank's columns; and their share of all. None on CUDA.
    """

    logprobs: torch.Tensor
    entropies: torch.Tensor
    log_normaliser: torch.Tensor
    columns: torch.Tensor
    temperature: float | torch.Tensor
    probabilities: tuple[torch.Tensor, torch.Tensor] | None = None


def token_statistics(
    logits_cv: torch.Tensor, targets: torch.Tensor, first: int = 0, temperature: float | torch.Tensor = 1.0
) -> TokenStatistics:
    """Log-probability of each target and entropy, without gradients (`logits_gradient` has them).

    Args:
        logits_cv: [C, vocab/TP], any float dtype; computed in fp32.
        targets: int64 [C], global token ids.
        first: the token id of this rank's first column.
        temperature: softmax temperature, above 0; one for all, or float64 [C], of each row.
    """
    with torch.no_grad():
        columns = targets - first if first else targets
        if logits_cv.is_cuda and not collectives.splits_tensors():
            from megatron_ring.model.kernels import vocabulary_triton

            logprobs, entropies, log_normaliser = vocabulary_triton.finished_statistics(
                logits_cv.contiguous(), columns, temperature
            )
            return TokenStatistics(logprobs, entropies, log_normaliser, columns, temperature)
        owned = _owned(columns, logits_cv)
        here, total, weighted, target, p_cv = _row_statistics(logits_cv, columns, temperature)
        # Everything is counted from the largest logit of all ranks.
        maximum = collectives.max_over_tensor(here.clone())
        shift = here - maximum
        mass = total * shift.exp()
        weighted = shift.exp() * (weighted + shift * total)
        # Three sums in one message: normaliser, sum of exp * logit (for the entropy), the target's logit.
        sums = torch.stack((mass, weighted, torch.where(owned, target - maximum, 0.0)))
        normaliser, weighted, target = collectives.sum_over_tensor(sums)
        log_normaliser = normaliser.log()
        logprobs, entropies = target - log_normaliser, log_normaliser - weighted / normaliser
        probabilities = None if p_cv is None else (p_cv, mass / normaliser)
        log_normaliser = log_normaliser + maximum
        return TokenStatistics(logprobs, entropies, log_normaliser, columns, temperature, probabilities)


def _owned(columns: torch.Tensor, logits_cv: torch.Tensor) -> torch.Tensor:
    """bool [C]: whether the target is one of this rank's columns."""
    return (columns >= 0) & (columns < logits_cv.shape[1])


def _on_rank(columns: torch.Tensor, logits_cv: torch.Tensor) -> torch.Tensor:
    """Columns of this rank: any where the target is another's."""
    return columns.clamp(0, logits_cv.shape[1] - 1)


def _row_statistics(
    logits_cv: torch.Tensor, columns: torch.Tensor, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Of x = logits / temperature, fp32 [C] each: maximum m, sum exp(x - m), sum exp(x - m) (x - m), x at `columns`; and on
    the CPU softmax(x) [C, vocab/TP]."""
    if logits_cv.is_cuda:
        from megatron_ring.model.kernels import vocabulary_triton

        maximum, total, weighted, target = vocabulary_triton.statistics(logits_cv.contiguous(), columns, temperature)
        return maximum, total, weighted, target, None
    logits = logits_cv.float()
    if isinstance(temperature, torch.Tensor):
        logits = logits / temperature[:, None].float()
    elif temperature != 1.0:
        logits = logits / temperature
    maximum = logits.amax(dim=-1)
    target = logits.gather(1, _on_rank(columns, logits_cv)[:, None])[:, 0]
    logits = logits - maximum[:, None]
    # Softmax is faster than exp on the CPU. Its largest value is exp(0) / sum.
    probabilities = torch.softmax(logits, dim=-1)
    total = probabilities.amax(dim=-1).reciprocal_()
    return maximum, total, torch.linalg.vecdot(probabilities, logits) * total, target, probabilities


def logits_gradient(
    logits_cv: torch.Tensor,
    statistics: TokenStatistics,
    by_logprob: torch.Tensor | None,
    by_entropy: torch.Tensor | None,
) -> torch.Tensor:
    """Gradient of a loss by the logits [C, vocab/TP], from its gradients by log-probability and entropy [C]. On CUDA it is
    written over the logits, in their dtype; elsewhere it is fp32, in place of the statistics' probabilities.

    d logp/d logit_j = ([j = target] - p_j) / temperature;  dH/d logit_j = -p_j (log p_j + H) / temperature.
    """
    assert isinstance(statistics.temperature, float | int), "training has one temperature"
    if logits_cv.is_cuda:
        from megatron_ring.model.kernels import vocabulary_triton

        found = statistics
        # The gradient of a sum is one number in many places: kernels read memory.
        by_logprob = torch.zeros_like(found.logprobs) if by_logprob is None else by_logprob.contiguous()
        by_entropy = None if by_entropy is None else by_entropy.contiguous()
        return vocabulary_triton.gradient_in_place(
            logits_cv, found.columns, found.log_normaliser, found.entropies, by_logprob, by_entropy,
            statistics.temperature,
        )  # fmt: skip
    assert statistics.probabilities is not None
    p_cv, share = statistics.probabilities
    by_target = torch.zeros_like(share) if by_logprob is None else by_logprob
    factor = by_target[:, None]
    if by_entropy is not None:
        log_p = logits_cv.float() / statistics.temperature - statistics.log_normaliser[:, None]
        factor = torch.addcmul((by_target + by_entropy * statistics.entropies)[:, None], by_entropy[:, None], log_p)
    gradient = p_cv.mul_(factor * -share[:, None])
    by_target = torch.where(_owned(statistics.columns, logits_cv), by_target, 0.0)
    gradient.scatter_add_(1, _on_rank(statistics.columns, logits_cv)[:, None], by_target[:, None])
    return gradient if statistics.temperature == 1.0 else gradient.div_(statistics.temperature)
