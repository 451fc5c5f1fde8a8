"""From the selected responses of a step to the micro-batches that each rank trains on."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ring.algorithm.objective import Objective
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
) -> list[PolicyBatch]:
    """This rank's micro-batches: the trained tokens of the step, packed, the same number on every rank. All ranks take part:
    tokens come from who sampled them."""
    responses = zip(selection.kept, selection.advantages, selection.trained, strict=True)
    packed = [(item.rollout, advantage, trained) for item, advantage, trained in responses if trained]
    weights = objective.token_weights([trained for _, _, trained in packed])
    lengths = [len(rollout.prompt_tokens) + trained for rollout, _, trained in packed]
    capacity = config.data.micro_batch_tokens
    plan, completions = deal_rollouts([rollout for rollout, _, _ in packed], lengths, capacity, config.seed, context)

    def sequence(place: int) -> PolicySequence:
        (rollout, advantage, trained), completion = packed[place], completions[place]
        return PolicySequence(
            prompt_tokens=rollout.prompt_tokens,
            response_tokens=completion.tokens,
            sampler_logprobs=completion.logprobs,
            advantage=advantage,
            weight=weights[place],
            trained=trained,
            routes=routes_of(completion, model) if completion.routes else None,
        )

    return [policy_batch([sequence(place) for place in places], capacity, pad_id) for places in plan]


def routes_of(completion: Completion, model: RingModel) -> Tensor:
    """The experts that the sampler noted, [tokens, MoE layers of this stage, k]."""
    experts = torch.frombuffer(bytearray(completion.routes), dtype=route_dtype(model.ring_config))
    return experts.view(completion.length, len(model.route_layers), model.ring_config.experts_per_token)
