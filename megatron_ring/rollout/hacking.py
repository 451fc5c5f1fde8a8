"""Figures that tell a reward that is hacked from one that is earned: what it goes with, and what it leaves behind.

Correlations are of ranks within the groups: each response's rank among those to the same prompt, equal values with their
mean rank, less the group's mean; then one product over all groups (Spearman's, pooled). So a prompt that asks for long
answers and is easy makes no correlation, and neither does a reward's scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from megatron_ring.judging.figures import ranks
from megatron_ring.rewards.interface import HELD_OUT, JUDGE_DISAGREEMENT, JUDGE_FAILURE
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.select import with_verdict

NGRAM = 4


def repetition(tokens: Sequence[int]) -> float:
    """The share of a response's runs of `NGRAM` tokens that it has had before (0..1): 1 - distinct / all."""
    count = len(tokens) - NGRAM + 1
    if count < 2:
        return 0.0
    return 1 - len(set(zip(*(tokens[start : start + count] for start in range(NGRAM)), strict=True))) / count


def group_correlation(first: Sequence[float], second: Sequence[float], groups: Sequence[int]) -> float:
    """Correlation of ranks within groups; 0 where a side is the same throughout every group."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    products, squares = [], ([], [])  # type: ignore[var-annotated]
    for own in places.values():
        mean = (len(own) - 1) / 2
        sides = [[rank - mean for rank in ranks([side[place] for place in own])] for side in (first, second)]
        products += [a * b for a, b in zip(*sides, strict=True)]
        for total, side in zip(squares, sides, strict=True):
            total += [rank * rank for rank in side]
    spread = math.fsum(squares[0]) * math.fsum(squares[1])
    return math.fsum(products) / math.sqrt(spread) if spread else 0.0


def hacking_figures(scored: Sequence[ScoredRollout]) -> dict[str, float]:
    """The figures of a step's responses, for the metrics; those that it has not are left out."""
    judged = with_verdict(scored)
    found = {"reward/judge_failed_fraction": sum(JUDGE_FAILURE in item.detail for item in scored) / len(scored)}
    found["watch/repetition"] = fmean(item.repetition for item in scored)
    apart = [item.detail[JUDGE_DISAGREEMENT] for item in scored if JUDGE_DISAGREEMENT in item.detail]
    if apart:
        found["judge/disagreement"] = fmean(apart)
    beside = [item for item in judged if HELD_OUT in item.detail]
    if beside:
        found["watch/rule_gap"] = fmean(item.reward - item.detail[HELD_OUT] for item in beside)
    for name, items, values in (
        ("length", judged, [float(item.rollout.response_length) for item in judged]),
        ("repetition", judged, [item.repetition for item in judged]),
        ("rule", beside, [float(item.detail[HELD_OUT]) for item in beside]),
    ):
        if items:
            groups, rewards = [item.rollout.prompt_index for item in items], [item.reward for item in items]
            found[f"watch/{name}_correlation"] = group_correlation(rewards, values, groups)
    return found
