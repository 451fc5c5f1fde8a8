"""What happens in an RL step before the optimizer: sample until the budget is reached, score meanwhile, select, pack."""

from __future__ import annotations

import time
from dataclasses import dataclass

from megatron_ring.data.packing import PolicyBatch, empty_policy_batch, pack_rollouts, split_evenly
from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rl.policy import Objective
from megatron_ring.rl.records import ScoredRollout
from megatron_ring.sampler.rollouts import sample_rollouts
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.stage_config import RLConfig
from megatron_ring.training.reward_kl import RewardKL
from megatron_ring.training.rollout_rewards import RolloutScorer
from megatron_ring.training.selection import Selection, missing, select_step


@dataclass(frozen=True)
class CollectedStep:
    """A step's scored responses, equal on every rank, and what of each is trained (tokens; 0: not at all)."""

    scored: list[ScoredRollout]
    answers: dict[int, StreamPrompt]
    selection: Selection
    budget: int | None
    rounds: int
    sample_seconds: float
    reward_seconds: float

    @property
    def generated_tokens(self) -> int:
        return sum(item.rollout.response_length for item in self.scored)

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


def collect_step(
    config: RLConfig, step: int, stream: PromptStream, sampler: Sampler, tokenizer: RingTokenizer,
    scorer: RolloutScorer, budget: int | None, reward_kl: RewardKL | None = None,
) -> CollectedStep:  # fmt: skip
    """Sample rounds of prompts until they hold what the step trains on (`missing` says what), score them, then select.

    Raises:
        UserError: that is not reached within `config.budget.max_rounds` rounds; says what was sampled.
    """
    scored: list[ScoredRollout] = []
    answers: dict[int, StreamPrompt] = {}
    sample_seconds = reward_seconds = 0.0
    rounds = 0
    while rounds == 0 or (lacks := missing(config, scored, budget)):
        if rounds == config.budget.max_rounds:
            raise UserError(
                f"step {step + 1}: {rounds} round(s) of {config.prompts_per_step} prompts x {config.samples_per_prompt} "
                f"samples gave {lacks}"
            )
        prompts = stream.take(config.prompts_per_step, step)
        answers |= {prompt.position: prompt for prompt in prompts}
        began = time.perf_counter()
        rollouts = sample_rollouts(
            sampler, prompts, tokenizer, samples=config.samples_per_prompt, seed=config.seed, version=step,
            instruction=config.data.instruction, on_rollout=scorer.submit,
        )  # fmt: skip
        sampled = time.perf_counter()
        scored += scorer.finish(rollouts)
        sample_seconds += sampled - began
        reward_seconds += time.perf_counter() - sampled
        rounds += 1
    sampler.release()  # what follows passes through the model without the cache
    selection = select_step(config, step, scored, budget, reward_kl)
    return CollectedStep(scored, answers, selection, budget, rounds, sample_seconds, reward_seconds)


def pack_step(
    collected: CollectedStep, config: RLConfig, objective: Objective, context: ParallelContext, pad_id: int
) -> list[PolicyBatch]:
    """This rank's micro-batches: the trained tokens of the step, packed, the same number on every rank."""
    chosen = collected.selection
    kept = [(item, a, n) for item, a, n in zip(collected.scored, chosen.advantages, chosen.trained, strict=True) if n]
    weights = objective.token_weights([n for _, _, n in kept]).tolist()
    sequences = [
        PolicySequence(
            prompt_tokens=item.rollout.prompt_tokens,
            response_tokens=item.rollout.response_tokens,
            sampler_logprobs=item.rollout.logprobs,
            advantage=advantage,
            weight=weight,
            trained=count,
        )
        for (item, advantage, count), weight in zip(kept, weights, strict=True)
    ]
    capacity = config.data.micro_batch_tokens
    packs = pack_rollouts(sequences, capacity, pad_id, config.seed)
    return split_evenly(packs, context.data_size, empty_policy_batch(capacity, pad_id))[context.data_rank]
