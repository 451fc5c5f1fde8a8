"""Rewards of tokenized conversations, under every layout: data-parallel ranks share them, all ranks get all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from megatron_ring.data.packing import plan_packs, split_evenly
from megatron_ring.data.preference_data import TokenPair, pack_ends
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, hidden_of_last_stage
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.reward_models.measures import ScoredPair
from megatron_ring.training.trainer import sequence_lengths

TILE = 8
"""Tokens that a forward pass is a multiple of on each tensor-parallel rank."""


@torch.no_grad()
def score_sequences(
    model: RingModel, context: ParallelContext, sequences: Sequence[Sequence[int]], capacity: int, pad_id: int,
    on_progress: Callable[[int], None] = lambda _: None, of_all_ranks: bool = True,
) -> list[float]:  # fmt: skip
    """The reward of each sequence at its last token, in order; all ranks take part.

    Args:
        model: with a score; it is left in the mode it was in.
        sequences: token ids, none of them empty or beyond the model's positions.
        capacity: tokens of a forward pass, as far as sequences are not longer.
        on_progress: told how many sequences this rank has scored so far.
        of_all_ranks: every rank brings the same sequences and gets all rewards. Otherwise a data-parallel replica has its
            own, or none, and gets theirs.
    """
    lengths = [len(tokens) for tokens in sequences]
    packs = plan_packs(lengths, max([capacity, *lengths]), seed=0)
    if of_all_ranks:
        packs = split_evenly(packs, context.data_size, [])[context.data_rank]
    else:  # experts are shared by replicas: each makes as many passes
        packs = [*packs, *[[]] * (max(collectives.gather_over_data(len(packs))) - len(packs))]
    found: dict[int, float] = {}
    done, training = 0, model.training
    model.eval()
    for pack in packs:
        found |= _score_pack(model, context, sequences, pack, pad_id)
        done += len(pack)
        on_progress(done)
    model.train(training)
    if of_all_ranks:
        found = {index: reward for part in collectives.gather_over_data(found) for index, reward in part.items()}
    found = collectives.broadcast_object_from_last_stage(found)
    return [found[index] for index in range(len(sequences))]


def _score_pack(
    model: RingModel, context: ParallelContext, sequences: Sequence[Sequence[int]], pack: Sequence[int], pad_id: int
) -> dict[int, float]:
    """Rewards of the sequences of these numbers, on the last pipeline stage; none on others."""
    tile = TILE * context.config.tensor
    tokens = sum(len(sequences[index]) for index in pack)
    batch = pack_ends([sequences[index] for index in pack], max(tile, -(-tokens // tile) * tile), pad_id)
    layout = PackedLayout(batch.positions.to(context.device), sequence_lengths(batch))
    hidden = hidden_of_last_stage(model, batch.tokens.to(context.device), layout)
    if hidden is None:
        return {}
    rows = batch.loss_mask.nonzero()[:, 0].to(context.device)
    return dict(zip(pack, model.score.rewards(hidden, rows).tolist(), strict=True))


def score_pairs(
    model: RingModel, context: ParallelContext, pairs: Sequence[TokenPair], capacity: int, pad_id: int,
    on_progress: Callable[[int], None] = lambda _: None,
) -> list[ScoredPair]:  # fmt: skip
    """The pairs with their rewards; as `score_sequences`."""
    sequences = [tokens for pair in pairs for tokens in (pair.chosen, pair.rejected)]
    rewards = score_sequences(model, context, sequences, capacity, pad_id, on_progress)
    return [
        ScoredPair(chosen, rejected, pair.chosen_answer, pair.rejected_answer, pair.margin, pair.subset)
        for pair, chosen, rejected in zip(pairs, rewards[0::2], rewards[1::2], strict=True)
    ]
