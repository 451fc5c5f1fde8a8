"""What happens in an RL step before the optimizer: sample until the budget is reached, score meanwhile, select, pack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ring.algorithm.objective import Objective
from megatron_ring.config.rl import RLConfig
from megatron_ring.data.packing import PolicyBatch, policy_batch
from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.model.ring_model import RingModel
from megatron_ring.model.routes import route_dtype
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.rollout.reward_kl import RewardKL
from megatron_ring.rollout.sampling import OpenRollout, open_rollouts, sample_rollouts
from megatron_ring.rollout.scoring import RolloutScorer
from megatron_ring.rollout.select import Selection, missing, select_step, usable_tokens
from megatron_ring.rollout.sharding import deal_rollouts
from megatron_ring.sampler.completion import Completion
from megatron_ring.sampler.sampler import Sampler


@dataclass(frozen=True)
class CollectedStep:
    """A step's scored responses, equal on every rank but for the tokens that other replicas hold, and what of each is
    trained (tokens; 0: not at all).

    Attributes:
        step: 0-based; the version of the weights.
        generated_tokens: sampled in this step, also for responses that are not finished.
        unfinished: figures of the responses that C3PO++ carries over; empty without it.
    """

    step: int
    scored: list[ScoredRollout]
    answers: dict[int, StreamPrompt]
    selection: Selection
    budget: int | None
    rounds: int
    generated_tokens: int
    unfinished: dict[str, int]
    sample_seconds: float
    reward_seconds: float

    @property
    def groups(self) -> list[tuple[str, str, list[float]]]:
        """Domain and id of the prompt and the rewards of each group, in order."""
        found: dict[int, tuple[str, str, list[float]]] = {}
        for item in self.scored:
            rollout = item.rollout
            found.setdefault(rollout.prompt_index, (rollout.domain, rollout.prompt_id, []))[2].append(item.reward)
        return list(found.values())

    @property
    def trained_tokens(self) -> int:
        return sum(self.selection.trained)


class Collector:
    """Collects the responses of one step after another. `pool` holds what C3PO++ leaves for later steps."""

    def __init__(
        self, config: RLConfig, stream: PromptStream, sampler: Sampler, tokenizer: RingTokenizer,
        reward_kl: RewardKL | None = None,
    ) -> None:  # fmt: skip
        self.config, self.stream, self.sampler, self.tokenizer = config, stream, sampler, tokenizer
        self.reward_kl = reward_kl
        self.pool = RolloutPool()

    def open(self, prompts: Sequence[StreamPrompt]) -> list[OpenRollout]:
        """The responses to prompts, before anything of them is sampled."""
        config = self.config
        return open_rollouts(
            prompts, self.tokenizer, samples=config.samples_per_prompt, seed=config.seed,
            max_new_tokens=config.sampling.max_new_tokens, instruction=config.data.instruction,
        )  # fmt: skip

    def collect(self, step: int, scorer: RolloutScorer, budget: int | None) -> CollectedStep:
        """Sample rounds until whole groups hold what the 0-based `step` trains on (`missing` says what), score, select.

        A round has `prompts_per_step` prompts under way, new ones in the place of whole groups. With `max_cuts` it ends as
        soon as whole groups hold the budget, and what is unfinished stays in the pool.

        Raises:
            UserError: `config.budget.max_rounds` rounds of new prompts do not suffice; says what was sampled.
        """
        config, pool = self.config, self.pool
        continued = sum(item.length > 0 for item in pool.open)
        groups = pool.take_whole()
        scored = [item for group in groups for item in group.finished]
        rounds = generated = new_prompts = 0
        sample_seconds = reward_seconds = 0.0
        while rounds == 0 or (lacks := missing(config, scored, budget)):
            new_prompts += config.prompts_per_step - len(pool)
            if new_prompts > config.budget.max_rounds * config.prompts_per_step:
                raise UserError(
                    f"step {step + 1}: {rounds} round(s) of {config.prompts_per_step} prompts x "
                    f"{config.samples_per_prompt} samples gave {lacks}"
                )
            pool.add(self.open(self.stream.take(config.prompts_per_step - len(pool), step)))
            began = time.perf_counter()
            rollouts, tokens = self._sample(step, scorer, scored, budget)
            sampled = time.perf_counter()
            pool.finish(scorer.finish(rollouts))
            whole = pool.take_whole()
            groups += whole
            scored += [item for group in whole for item in group.finished]
            generated += tokens
            sample_seconds += sampled - began
            reward_seconds += time.perf_counter() - sampled
            rounds += 1
        self.sampler.release()  # what follows passes through the model without the cache
        scored.sort(key=lambda item: (item.rollout.prompt_index, item.rollout.sample))
        selection = select_step(config, step, scored, budget, self.reward_kl)
        answers = {group.prompt.position: group.prompt for group in groups}
        return CollectedStep(
            step, scored, answers, selection, budget, rounds, generated, self._age(continued), sample_seconds, reward_seconds
        )

    def _sample(
        self, step: int, scorer: RolloutScorer, scored: list[ScoredRollout], budget: int | None
    ) -> tuple[list[Rollout], int]:
        """Sample the pool's open responses, where `scored` are those of whole groups so far: the responses that are finished
        by it, and the number of tokens sampled."""
        pool, wanted = self.pool, None
        if budget is not None and self.config.budget.max_cuts is not None:
            wanted = budget - usable_tokens(self.config, scored, budget)
        before = sum(item.length for item in pool.open)
        scorer.start()
        rollouts, pool_open = sample_rollouts(
            self.sampler, pool.open, version=step, token_budget=wanted, held_tokens=pool.held_tokens(),
            on_rollout=scorer.submit,
        )  # fmt: skip
        pool.set_open(pool_open)
        after = sum(item.length for item in pool_open) + sum(rollout.response_length for rollout in rollouts)
        return rollouts, after - before

    def _age(self, continued: int) -> dict[str, int]:
        """End the step for the pool; its figures."""
        if self.config.budget.max_cuts is None:
            return {}
        dropped, dropped_tokens = self.pool.age(self.config.budget.max_cuts)
        lengths = [item.length for item in self.pool.open if item.length]
        return {"continued": continued, "dropped": dropped, "dropped_tokens": dropped_tokens, "responses": len(lengths),
                "tokens": sum(lengths), "waiting": len(self.pool.finished)}  # fmt: skip


def routes_of(completion: Completion, model: RingModel) -> Tensor:
    """The experts that the sampler noted, [tokens, MoE layers of this stage, k]."""
    found = torch.frombuffer(bytearray(completion.routes), dtype=route_dtype(model.ring_config))
    return found.view(completion.length, len(model.route_layers), model.ring_config.experts_per_token)


def pack_step(
    collected: CollectedStep, config: RLConfig, objective: Objective, model: RingModel, context: ParallelContext, pad_id: int
) -> list[PolicyBatch]:
    """This rank's micro-batches: the trained tokens of the step, packed, the same number on every rank. All ranks take part:
    tokens come from who sampled them."""
    chosen = collected.selection
    every = zip(collected.scored, chosen.advantages, chosen.trained, strict=True)
    kept = [(item.rollout, advantage, trained) for item, advantage, trained in every if trained]
    weights = objective.token_weights([n for _, _, n in kept])
    lengths = [len(rollout.prompt_tokens) + n for rollout, _, n in kept]
    capacity = config.data.micro_batch_tokens
    mine, completions = deal_rollouts([rollout for rollout, _, _ in kept], lengths, capacity, config.seed, context)

    def sequence(place: int) -> PolicySequence:
        (rollout, advantage, trained), completion = kept[place], completions[place]
        return PolicySequence(
            prompt_tokens=rollout.prompt_tokens,
            response_tokens=completion.tokens,
            sampler_logprobs=completion.logprobs,
            advantage=advantage,
            weight=weights[place],
            trained=trained,
            routes=routes_of(completion, model) if completion.routes else None,
        )

    return [policy_batch([sequence(place) for place in pack], capacity, pad_id) for pack in mine]
