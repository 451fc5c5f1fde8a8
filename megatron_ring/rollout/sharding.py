"""Which responses of a step this data-parallel rank computes, in micro-batches, and their tokens from who sampled them."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ring.data.packing import plan_rollouts
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rollout.handover import hand_over
from megatron_ring.rollout.records import Rollout
from megatron_ring.sampler.completion import Completion


def deal_rollouts(
    rollouts: Sequence[Rollout], lengths: Sequence[int], capacity: int, seed: int, context: ParallelContext
) -> tuple[list[list[int]], int, list[Completion]]:
    """Deal rollouts to the data-parallel ranks in micro-batches of up to `capacity` tokens. All ranks bring the same ones.

    Args:
        lengths: tokens that are packed of each, those of its prompt included.

    Returns:
        The places of the rollouts in each of this rank's micro-batches, as many on every rank; the tokens that each
        micro-batch of any rank is to have; and all completions, of which those of this rank's have their tokens.

    Raises:
        UserError: one is longer than `capacity`.
    """
    plans, tokens = plan_rollouts(lengths, capacity, seed, context.data_size, context.config.tensor)
    takers = {place: rank for rank, packs in enumerate(plans) for pack in packs for place in pack}
    completions = hand_over(
        [rollout.completion for rollout in rollouts],
        [rollout.holder for rollout in rollouts],
        [takers.get(place) for place in range(len(rollouts))],
        context,
    )
    return plans[context.data_rank], tokens, completions
