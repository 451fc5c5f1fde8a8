"""From the selected responses of a step to the micro-batches that each rank trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megatron_ring.algorithm.objective import Objective
from megatron_ring.algorithm.updates import Piece
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.packing import PolicyBatch, policy_batch
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.model.ring_model import RingModel
from megatron_ring.model.routes import route_dtype
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rollout.select import Selection
from megatron_ring.rollout.sharding import deal_rollouts
from megatron_ring.sampler.completion import Completion


def pack_step(
    selection: Selection, config: RLConfig, objective: Objective, model: RingModel, context: ParallelContext, pad_id: int
) -> list[list[PolicyBatch]]:
    """For each update of the step this rank's micro-batches: the update's trained tokens, packed, the same number on every
    rank. All micro-batches of the step have the same number of tokens, up to --data.micro-batch-tokens: as few as hold what
    is trained. All ranks take part: tokens come from who sampled them."""
    capacity, plans = config.data.micro_batch_tokens, []
    for pieces in selection.updates:
        rollouts = [selection.kept[piece.index].rollout for piece in pieces]
        lengths = [len(rollout.prompt_tokens) + piece.end for rollout, piece in zip(rollouts, pieces, strict=True)]
        plans.append(deal_rollouts(rollouts, lengths, capacity, config.seed, context))
    most = max(tokens for _, tokens, _ in plans)
    packed = []
    for pieces, (plan, _, completions) in zip(selection.updates, plans, strict=True):
        sequence = _sequences(selection, pieces, completions, objective, model)
        packed.append([policy_batch([sequence(place) for place in places], most, pad_id) for places in plan])
    return packed


def _sequences(
    selection: Selection, pieces: Sequence[Piece], completions: Sequence[Completion], objective: Objective, model: RingModel
) -> Callable[[int], PolicySequence]:
    """What is packed of the piece at a place."""
    weights = objective.token_weights([piece.tokens for piece in pieces])

    def sequence(place: int) -> PolicySequence:
        piece, completion = pieces[place], completions[place]
        return PolicySequence(
            prompt_tokens=selection.kept[piece.index].rollout.prompt_tokens,
            response_tokens=completion.tokens,
            sampler_logprobs=completion.logprobs,
            advantage=selection.advantages[piece.index],
            weight=weights[place],
            trained=piece.end,
            routes=routes_of(completion, model) if completion.routes else None,
            begin=piece.begin,
        )

    return sequence


def routes_of(completion: Completion, model: RingModel) -> Tensor:
    """The experts that the sampler noted, [tokens, MoE layers of this stage, k]."""
    experts = torch.frombuffer(bytearray(completion.routes), dtype=route_dtype(model.ring_config))
    return experts.view(completion.length, len(model.route_layers), model.ring_config.experts_per_token)
