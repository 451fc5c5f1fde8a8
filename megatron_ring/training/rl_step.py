"""What happens in an RL step before the optimizer: sample until the budget is reached, score meanwhile, select, pack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

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
from megatron_ring.training.trainer import StepResult


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
        prompts = stream.take(config.prompts_per_step)
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


def _reward_and_length(items: list[ScoredRollout], suffix: str) -> dict[str, float]:
    rewards = torch.tensor([item.reward for item in items], dtype=torch.float64)
    lengths = [item.rollout.response_length for item in items]
    return {
        f"reward/mean{suffix}": rewards.mean().item(),
        f"reward/std{suffix}": rewards.std(correction=0).item(),
        f"response_length/mean{suffix}": sum(lengths) / len(lengths),
        f"response_length/max{suffix}": max(lengths),
    }


def _parts(items: list[ScoredRollout], suffix: str) -> dict[str, float]:
    """Mean of each part, gate and length penalty of composed rewards, over the responses that have it."""
    values: dict[str, list[float]] = {}
    for item in items:
        for group in ("parts", "gates"):
            for name, (value, _) in item.detail.get(group, {}).items():
                values.setdefault(f"reward_{group}/{name}", []).append(value)
        if "length_penalty" in item.detail:
            values.setdefault("reward_length_penalty", []).append(item.detail["length_penalty"])
    return {name + suffix: sum(found) / len(found) for name, found in values.items()}


def rl_metrics(collected: CollectedStep, result: StepResult) -> dict[str, Any]:
    """The step's figures under the names of the metrics contract; docs/c3po.md says what each means."""
    scored, kl = collected.scored, collected.selection.kl
    domains = sorted({item.rollout.domain for item in scored})
    metrics: dict[str, Any] = _reward_and_length(scored, "") | _parts(scored, "")
    for domain in domains if len(domains) > 1 else []:
        items = [item for item in scored if item.rollout.domain == domain]
        metrics |= _reward_and_length(items, f"/{domain}") | _parts(items, f"/{domain}")
    truncated = sum(item.rollout.finish_reason == "length" for item in scored)
    return metrics | {
        "response_length/truncated_fraction": truncated / len(scored),
        "tokens/generated": collected.generated_tokens,
        "tokens/trained": result.loss_tokens,
        "tokens/budget": collected.budget or result.loss_tokens,
        "tokens/discarded_fraction": 1 - collected.trained_tokens / collected.generated_tokens,
        "sampling_rounds": collected.rounds,
        "groups/equal_rewards_fraction": collected.selection.equal_fraction,
        "grad_norm": result.grad_norm,
        "entropy": result.mean("entropy_sum"),
        "kl": result.mean("kl_sum") if kl is None else kl,
        "clip_fraction": result.mean("clipped_tokens"),
        "loss/policy": result.mean("policy_loss_sum"),
        "loss/balance": result.balance,
        "loss/z": result.z,
        "mismatch/logprob_abs_mean": result.mean("mismatch_logprob_abs_sum"),
        "mismatch/logprob_abs_max": result.maxima["mismatch_logprob_abs_max"],
        "mismatch/masked_fraction": result.mean("corrected_away_tokens"),
    }


def rollout_rows(collected: CollectedStep, tokenizer: RingTokenizer) -> list[dict[str, Any]]:
    """One JSON object per response, as `rollouts/step_N.jsonl` holds them."""
    rows = []
    for item, trained in zip(collected.scored, collected.selection.trained, strict=True):
        rollout = item.rollout
        record = collected.answers[rollout.prompt_index].record
        prompt = record.prompt if isinstance(record.prompt, str) else [vars(message) for message in record.prompt]
        rows.append(
            {
                "prompt_id": rollout.prompt_id,
                "domain": rollout.domain,
                "sample": rollout.sample,
                "prompt": prompt,
                "response": tokenizer.decode(rollout.response_tokens),
                "answer": record.answer,
                "reward": item.reward,
                "reason": item.reason,
                "tokens": rollout.response_length,
                "trained_tokens": trained,
                "finish_reason": rollout.finish_reason,
                **({"detail": dict(item.detail)} if item.detail else {}),
            }
        )
    return rows
