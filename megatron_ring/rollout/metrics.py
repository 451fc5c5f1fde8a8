"""What an RL step leaves behind: its figures for metrics.jsonl and its responses for rollouts/."""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.data.records import PromptRecord
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.rollout.collecting import CollectedStep
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.select import Selection, equal_rewards_fraction, response_lengths, with_verdict
from megatron_ring.training.trainer import StepResult


def _reward_and_length(items: list[ScoredRollout], suffix: str) -> dict[str, float]:
    judged = with_verdict(items) or items  # all without one: their zeros
    rewards = torch.tensor([item.reward for item in judged], dtype=torch.float64)
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
    for item in with_verdict(items):
        for group in ("parts", "gates"):
            for name, (value, _) in item.detail.get(group, {}).items():
                values.setdefault(f"reward_{group}/{name}", []).append(value)
        if "length_penalty" in item.detail:
            values.setdefault("reward_length_penalty", []).append(item.detail["length_penalty"])
    return {name + suffix: sum(of_responses) / len(of_responses) for name, of_responses in values.items()}


def sampling_metrics(collected: CollectedStep, selection: Selection, by_domain: bool) -> dict[str, Any]:
    """The figures of a step's responses under the names of the metrics contract; docs/reference/metrics.md has each.
    `by_domain`: those of each domain, too."""
    scored = collected.scored
    domains = sorted({item.rollout.domain for item in scored})
    metrics: dict[str, Any] = _reward_and_length(scored, "") | _parts(scored, "")
    for domain in domains if by_domain else []:
        items = [item for item in scored if item.rollout.domain == domain]
        metrics |= _reward_and_length(items, f"/{domain}") | _parts(items, f"/{domain}")
    truncated = sum(item.rollout.finish_reason == "length" for item in scored)
    return metrics | {
        "reward/machine_failures": sum(not item.has_verdict for item in scored),
        "response_length/truncated_fraction": truncated / len(scored),
        "tokens/generated": collected.generated_tokens,
        "tokens/discarded_fraction": 1 - selection.trained_tokens / sum(response_lengths(scored)),
        "sampling_rounds": collected.rounds,
        "groups/equal_rewards_fraction": equal_rewards_fraction(scored),
        **(_staleness(collected.step, selection) if collected.unfinished else {}),
        **{f"unfinished/{name}": count for name, count in collected.unfinished.items()},
    }


def update_metrics(result: StepResult, budget: int | None, kl: float | None) -> dict[str, Any]:
    """The figures of a step's update, likewise. `kl`: what was taken off the rewards, where it was."""
    return {
        "tokens/trained": result.loss_tokens,
        "tokens/budget": budget or result.loss_tokens,
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
        **({} if result.router_disagreement is None else {"mismatch/router_disagreement": result.router_disagreement}),
    }


def packed_fraction(selection: Selection, micro_batches: int, capacity: int) -> float:
    """Share of the update's computed tokens that are some response's or its prompt's, not padding; `micro_batches` of all
    data-parallel ranks, of `capacity` tokens each."""
    kept = zip(selection.kept, selection.trained, strict=True)
    tokens = sum(len(item.rollout.prompt_tokens) + trained for item, trained in kept if trained)
    return tokens / (micro_batches * capacity)


def _staleness(step: int, selection: Selection) -> dict[str, float]:
    """By how many updates the trained tokens are older than the weights of the 0-based `step`."""
    ages: dict[int, int] = {}  # age -> tokens
    for item, left in zip(selection.kept, selection.trained, strict=True):
        for version, count in item.rollout.completion.versions:
            ages[step - version] = ages.get(step - version, 0) + min(count, left)
            left -= min(count, left)
    tokens = sum(ages.values())
    return {
        "staleness/mean": sum(age * count for age, count in ages.items()) / tokens,
        "staleness/max": max(age for age, count in ages.items() if count),
        "staleness/older_fraction": 1 - ages.get(0, 0) / tokens,
    }


def rollout_row(item: ScoredRollout, trained: int, record: PromptRecord, tokenizer: RingTokenizer) -> dict[str, Any]:
    """A response as `rollouts/step_N.jsonl` has it; `trained` tokens of it carry gradient."""
    rollout = item.rollout
    return {
        "prompt_id": rollout.prompt_id,
        "domain": rollout.domain,
        "sample": rollout.sample,
        "prompt": record.prompt,
        "response": tokenizer.decode(rollout.completion.tokens),
        "answer": record.answer,
        "reward": item.reward,
        "reason": item.reason,
        "tokens": rollout.response_length,
        "trained_tokens": trained,
        "finish_reason": rollout.finish_reason,
        "versions": rollout.completion.versions,
        **({"detail": dict(item.detail)} if item.detail else {}),
    }
