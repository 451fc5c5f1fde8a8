"""What an RL step leaves behind: its figures for metrics.jsonl and its responses for rollouts/."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from megatron_ring.algorithm.kl import LOG_RATIO_LIMIT
from megatron_ring.data.records import PromptRecord, tools_of
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.rewards.interface import JUDGE_FAILURE, MACHINE_FAILURE
from megatron_ring.rollout.collecting import CollectedStep
from megatron_ring.rollout.hacking import hacking_figures
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
    """Mean of each part, gate and length penalty of composed rewards, over the responses that have it; the share of parts
    that a rule decided, where one may."""
    values: dict[str, list[float]] = {}
    for item in with_verdict(items):
        for group in ("parts", "gates"):
            for name, (value, _) in item.detail.get(group, {}).items():
                values.setdefault(f"reward_{group}/{name}", []).append(value)
        for name, by_rule in item.detail.get("rules", {}).items():
            values.setdefault(f"reward_rules/{name}", []).append(float(by_rule))
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
        **hacking_figures(scored),
        "reward/machine_failures": sum(MACHINE_FAILURE in item.detail for item in scored),
        "reward/judge_failures": sum(JUDGE_FAILURE in item.detail for item in scored),
        "response_length/truncated_fraction": truncated / len(scored),
        "tokens/generated": collected.generated_tokens,
        "tokens/discarded_fraction": 1 - selection.trained_tokens / sum(response_lengths(scored)),
        "sampling_rounds": collected.rounds,
        "groups/equal_rewards_fraction": equal_rewards_fraction(scored),
        **(_staleness(collected.step, selection) if collected.unfinished else {}),
        **{f"unfinished/{name}": count for name, count in collected.unfinished.items()},
    }


def update_metrics(results: Sequence[StepResult], budget: int | None, kl: float | None) -> dict[str, Any]:
    """The figures of a step's updates, likewise. `kl`: what was taken off the rewards, where it was.

    The sampler is compared with the trainer in the first update alone: the others have changed the weights.
    """
    first, tokens = results[0], sum(result.loss_tokens for result in results)

    def mean(name: str) -> float:
        return sum(result.sums[name] for result in results) / max(1, tokens)

    return {
        "tokens/trained": tokens,
        "tokens/budget": budget or tokens,
        "grad_norm": max(result.grad_norm for result in results),
        "entropy": mean("entropy_sum"),
        "kl": mean("kl_sum") if kl is None else kl,
        "clip_fraction": mean("clipped_tokens"),
        "loss/policy": mean("policy_loss_sum"),
        "loss/balance": fmean(result.balance for result in results),
        "loss/z": fmean(result.z for result in results),
        "mismatch/logprob_abs_mean": first.mean("mismatch_logprob_abs_sum"),
        "mismatch/logprob_abs_max": first.maxima["mismatch_logprob_abs_max"],
        "mismatch/masked_fraction": mean("corrected_away_tokens"),
        **({} if first.router_disagreement is None else {"mismatch/router_disagreement": first.router_disagreement}),
        **(_each_update(results) if len(results) > 1 else {}),
    }


def _each_update(results: Sequence[StepResult]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for number, result in enumerate(results, start=1):
        farthest = min(LOG_RATIO_LIMIT, result.maxima["log_ratio_abs_max"])
        figures |= {
            f"tokens/trained/update_{number}": result.loss_tokens,
            f"clip_fraction/update_{number}": result.mean("clipped_tokens"),
            f"ratio/mean/update_{number}": result.mean("ratio_sum"),
            f"ratio/max/update_{number}": math.exp(farthest),
            f"grad_norm/update_{number}": result.grad_norm,
        }
    return figures


def packed_fraction(selection: Selection, computed: int) -> float:
    """Share of the updates' `computed` tokens, those of all micro-batches and data-parallel ranks, that are some response's
    or its prompt's, not padding."""
    pieces = [piece for update in selection.updates for piece in update]
    tokens = sum(len(selection.kept[piece.index].rollout.prompt_tokens) + piece.end for piece in pieces)
    return tokens / computed


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
        **tools_of(record.messages),
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
