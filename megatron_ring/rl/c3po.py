"""C3PO: the clipped policy loss over a fixed number of tokens, each with the same weight."""

from __future__ import annotations

from torch import Tensor

from megatron_ring.rl.policy import policy_loss


def c3po_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None,
    entropy: Tensor,
    mask: Tensor,
    clip: float,
    kl_beta: float,
    alpha_entropy: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The token sum of C3PO's loss for one micro-batch (Ring-lite report, arXiv 2506.14731).

        loss_sum = sum_{t in mask} ( -[ min(r_t A, clip(r_t, 1 +- clip) A) - kl_beta KL_t ] - alpha_entropy H_t )
        L_C3PO   = (1 / Phi) * (loss_sum over all micro-batches and ranks)

    The caller divides ONCE by the global Phi. That is what makes any split into micro-batches and data-parallel ranks
    give the same loss and gradient; dividing by a micro-batch's own token count would not. The balance and z-losses of
    the total loss are not here: the model's router adds their gradients itself.

    Args:
        logprobs: [T] log pi_theta of each sampled token, in nats, with gradient.
        old_logprobs: [T] log pi_old of the same tokens (the sampler's own, or recomputed before the update).
        advantages: [T] the advantage of the response that each token belongs to.
        ref_logprobs: [T] log pi_ref, or None when there is no KL term; then `kl_beta` must be 0.
        entropy: [T] entropy of pi_theta at each token, in nats, with gradient where `alpha_entropy` is not 0.
        mask: [T] bool, the tokens of Psi. Values elsewhere are never used: NaN and infinities there are harmless, in
            the loss and in its gradient.
        clip: epsilon, 0.2 in the report.
        kl_beta: beta, 1e-3 in the report.
        alpha_entropy: weight of the entropy bonus, 5e-4 in the report.

    Returns:
        loss_sum, a scalar in fp32 (float64 for float64 inputs), and metrics: detached float64 scalars on the same
        device, sums over the masked tokens, to be added across micro-batches and ranks (`combine_metrics`):
        tokens; policy_loss_sum (of -min(...), weighted as in the loss); entropy_sum; kl_sum; clipped_tokens (where
        clipping removes the gradient); mismatch_logprob_abs_sum of |logprobs - old_logprobs|, and its maximum,
        mismatch_logprob_abs_max.

    Raises:
        ValueError: shapes differ, the mask is not bool, clip is not positive, or kl_beta is set without ref_logprobs.
    """
    return policy_loss(
        logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        mask=mask,
        weights=None,
        clip=clip,
        kl_beta=kl_beta,
        alpha_entropy=alpha_entropy,
    )
