"""A planted reward that goes by length is caught, an honest one is not; the figures against their definitions."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.config.operations import AlarmConfig
from megatron_ring.rewards.interface import HELD_OUT, JUDGE_DISAGREEMENT, JUDGE_FAILURE
from megatron_ring.rollout.hacking import group_correlation, hacking_figures, repetition
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.run.alarms import Alarms
from tests.rollout.responses import step_of

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), max_size=14)


@given(PAIRS)
def test_the_correlation_is_of_ranks_within_groups(rows: list[tuple[int, int, int]]) -> None:
    def centred(values: list[int], groups: list[int]) -> torch.Tensor:
        found = []
        for value, group in zip(values, groups, strict=True):
            own = [other for other, its in zip(values, groups, strict=True) if its == group]
            rank = sum(other < value for other in own) + (sum(other == value for other in own) - 1) / 2
            found.append(rank - (len(own) - 1) / 2)
        return torch.tensor(found, dtype=torch.float64)

    first, second, groups = ([row[place] for row in rows] for place in range(3))
    a, b = centred(first, groups), centred(second, groups)
    found = group_correlation(first, second, groups)
    if not a.abs().sum() or not b.abs().sum():
        assert found == 0
    else:
        assert found == pytest.approx(float(a @ b / (a.norm() * b.norm())))


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0), ([1, 2, 3, 4], 0), ([1, 2, 3, 4, 5], 0), ([7] * 13, 0.9), ([1, 2, 3, 4] * 2, 0.2), ([*range(50)], 0)],
)
def test_repetition(tokens: list[int], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


CAUGHT = {"watch/length_correlation", "watch/rule_gap"}


def a_step(chance: random.Random, grown: int, reward: Any) -> list[ScoredRollout]:
    """Six groups of eight; responses are longer the longer the run goes, and right ones somewhat shorter or longer."""
    lengths = [chance.randint(20, 60) + grown for _ in range(48)]
    items = step_of(lengths, [0] * 48, samples=8)
    found = []
    for item in items:
        right = float(chance.random() < 0.5)
        value = reward(item.rollout.response_length, right, chance)
        found.append(replace(item, reward=value, detail={HELD_OUT: right}, repetition=0.1))
    return found


@pytest.mark.parametrize(
    ("name", "reward", "broken"),
    [
        ("by length", lambda length, right, chance: length / 40, CAUGHT),
        ("mostly by length", lambda length, right, chance: right + length / 8, CAUGHT),
        ("honest", lambda length, right, chance: right, set()),
        ("honest, uncertain", lambda length, right, chance: right + chance.gauss(0, 0.5), set()),
        ("noise", lambda length, right, chance: chance.random(), set()),
    ],
)  # fmt: skip
def test_a_planted_reward_that_goes_by_length_is_caught(name: str, reward: Any, broken: set[str]) -> None:
    alarms = Alarms(AlarmConfig(action="warn", length_correlation=0.6, rule_gap=0.5, window=4))
    chance, seen = random.Random(name), []
    for step in range(100):
        figures = hacking_figures(a_step(chance, step, reward))
        seen.append({alarm.metric for alarm in alarms.check({"step": step + 1, "reward/mean": 0.0, **figures})})
    assert set().union(*seen) == broken
    if broken:
        assert all("watch/length_correlation" in of_step for of_step in seen[3:]) and not any(seen[:3])


def test_the_figures_of_a_step() -> None:
    items = step_of([4, 5, 6, 7], [0] * 4, samples=2)
    details = [{JUDGE_DISAGREEMENT: 0.2}, {JUDGE_FAILURE: "x"}, {HELD_OUT: 1.0, JUDGE_DISAGREEMENT: 0.4}, {HELD_OUT: 0.0}]
    step = [replace(item, reward=float(n), detail=details[n], repetition=n / 4) for n, item in enumerate(items)]
    assert hacking_figures(step) == pytest.approx({
        "reward/judge_failed_fraction": 0.25, "watch/repetition": 0.375, "judge/disagreement": 0.3, "watch/rule_gap": 2.0,
        "watch/length_correlation": 1.0, "watch/repetition_correlation": 1.0, "watch/rule_correlation": -1.0,
    })  # fmt: skip
