"""GRPO: the same clipped loss, averaged per response first. The baseline that C3PO is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ring.rl.policy import policy_loss


def grpo_token_weights(lengths: Sequence[int]) -> Tensor:
    """The weight of every token of each response that turns a token mean into GRPO's mean over responses.

        w_i = T / (N |y_i|), so that (1 / T) sum_i sum_t w_i l_it = mean_i (1 / |y_i|) sum_t l_it,  T = sum_i |y_i|

    GRPO (arXiv 2402.03300) thereby goes through the same path as C3PO: sum, then divide once by the global number of
    tokens T. `lengths` must therefore cover all N responses of the step, over every rank.

    Args:
        lengths: trained tokens of each response, at least 1.

    Returns:
        [N] float64, parallel to `group_advantages`: a packer repeats w_i over the tokens of response i.

    Raises:
        ValueError: a length below 1.
    """
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"response {index} has a length of {length} tokens, must be at least 1")
    counts = torch.tensor(list(lengths), dtype=torch.float64)
    return counts.sum() / (len(lengths) * counts)


def grpo_loss(
    logprobs: Tensor,
    *,
    old_logprobs: Tensor,
    advantages: Tensor,
    ref_logprobs: Tensor | None,
    entropy: Tensor,
    mask: Tensor,
    weights: Tensor,
    clip: float,
    kl_beta: float,
    alpha_entropy: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted token sum of GRPO's loss for one micro-batch.

        loss_sum = sum_{t in mask} w_t ( -[ min(r_t A, clip(r_t, 1 +- clip) A) - kl_beta KL_t ] - alpha_entropy H_t )
        L_GRPO   = (1 / T) * (loss_sum over all micro-batches and ranks)

    Args:
        weights: [T] from `grpo_token_weights`, each response's weight repeated over its tokens. With weights of 1 this
            is `c3po_loss`, whose other arguments, metrics, errors and treatment of the mask are the same here.
    """
    return policy_loss(
        logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        mask=mask,
        weights=weights,
        clip=clip,
        kl_beta=kl_beta,
        alpha_entropy=alpha_entropy,
    )
