"""Alarm rules against a direct statement of each over the whole history, and what is done about them."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.config.operations import AlarmConfig
from megatron_ring.errors import NotFiniteError, UserError
from megatron_ring.run.alarms import Alarm, Alarms
from megatron_ring.run.watch import Watch

ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "entropy": st.floats(0, 2),
            "loss": st.floats(0, 5),
            "grad_norm": st.floats(0, 10),
            "reward/mean": st.floats(0, 1),
            "data/stage": st.integers(1, 2),
            "watch/length_correlation": st.none() | st.floats(-1, 1),
            "watch/rule_gap": st.floats(-1, 1),
        }
    ),
    max_size=30,
)
CONFIG = AlarmConfig(
    entropy_floor=0.2, grad_norm_factor=1.5, loss_rise=1.0, reward_drop=0.1, length_correlation=0.2, rule_gap=0.3, window=3
)


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"step": step, **row} for step, row in enumerate(rows, start=1)]


def by_definition(rows: list[dict[str, Any]], window: int = 3) -> list[set[str]]:
    """The metrics in alarm after each step, from all rows up to it."""
    found = []
    for i, row in enumerate(rows):
        broken = {"entropy"} if row["entropy"] < 0.2 else set()
        before = [r["grad_norm"] for r in rows[max(0, i - window) : i]]
        if len(before) == window and row["grad_norm"] > 1.5 * statistics.median(before):
            broken.add("grad_norm")
        losses = [r["loss"] for r in rows[max(0, i - window) : i]]
        if len(losses) == window and row["loss"] > statistics.median(losses) + 1.0:
            broken.add("loss")
        first = i
        while first > 0 and rows[first - 1]["data/stage"] == row["data/stage"]:
            first -= 1
        rewards = [r["reward/mean"] for r in rows[first : i + 1]]
        means = [statistics.fmean(rewards[n - window : n]) for n in range(window, len(rewards) + 1)]
        if means and means[-1] < max(means) - 0.1:
            broken.add("reward/mean")
        gaps = [r["watch/rule_gap"] for r in rows[first : i + 1]]
        means = [statistics.fmean(gaps[n - window : n]) for n in range(window, len(gaps) + 1)]
        if means and means[-1] > min(means) + 0.3:
            broken.add("watch/rule_gap")
        told = [r["watch/length_correlation"] for r in rows[: i + 1] if r["watch/length_correlation"] is not None]
        last = row["watch/length_correlation"] is not None and told[-window:]
        if last and len(last) == window and statistics.fmean(last) > 0.2:
            broken.add("watch/length_correlation")
        found.append(broken)
    return found


@settings(deadline=None)
@given(rows=ROWS, resumed_at=st.integers(0, 30))
def test_rules_are_their_definitions_and_a_continued_run_is_judged_alike(rows: list[Any], resumed_at: int) -> None:
    rows = numbered(rows)
    alarms, found = Alarms(CONFIG), []
    for row in rows:
        if row["step"] == resumed_at:
            state = json.loads(json.dumps(alarms.state_dict()))
            alarms = Alarms(CONFIG)
            alarms.load_state_dict(state)
        found.append(alarms.check(row))
    assert [{alarm.metric for alarm in broken} for broken in found] == by_definition(rows)
    for row, broken in zip(rows, found, strict=True):
        for alarm in broken:
            assert alarm.step == row["step"] and alarm.value is not None and alarm.bound is not None
            above = alarm.metric in ("grad_norm", "loss", "watch/length_correlation", "watch/rule_gap")
            assert (alarm.value > alarm.bound) == above and alarm.value != alarm.bound


@pytest.mark.parametrize("name", ["entropy", "kl", "loss/policy", "grad_norm", "reward/mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_always_an_alarm(name: str, value: float) -> None:
    alarms = Alarms(AlarmConfig())
    assert alarms.check({"step": 1, "entropy": 0.0, "grad_norm": 1e9}) == []
    (alarm,) = alarms.check({"step": 2, name: value})
    assert str(alarm) == f"alarm at step 2: {name} is {value}" and json.loads(json.dumps(alarm.to_json()))["value"] is None
    assert alarms.check({"step": 3, "entropy": 1.0, "grad_norm": 1.0, "reward/mean": 0.0}) == []


def test_an_alarm_says_metric_value_bound_and_step() -> None:
    alarms = Alarms(AlarmConfig(entropy_floor=0.2, grad_norm_factor=10, reward_drop=0.25, window=2))
    for step in (1, 2):
        alarms.check({"step": step, "entropy": 1.0, "grad_norm": 0.5 * step, "reward/mean": 0.75})
    assert [str(alarm) for alarm in alarms.check({"step": 3, "entropy": 0.125, "grad_norm": 8.0, "reward/mean": 0.0})] == [
        "alarm at step 3: entropy is 0.125, below --alarms.entropy-floor 0.2",
        "alarm at step 3: grad_norm is 8, above 7.5: --alarms.grad-norm-factor 10 x its median 0.75 over 2 steps",
        "alarm at step 3: reward/mean over 2 steps is 0.375, below 0.5: --alarms.reward-drop 0.25 under its best 0.75",
    ]


@pytest.mark.parametrize("name", ["length_correlation", "repetition", "rule_gap", "judge_disagreement", "judge_failures"])
def test_bounds_of_rewards(name: str) -> None:
    flag = "--alarms." + name.replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} is 0, not a positive number"):
        AlarmConfig(**{name: 0})
    with pytest.raises(UserError, match=f"^{flag}: SFT has no rewards to watch"):
        AlarmConfig(**{name: 0.5}).check_no_rewards("SFT")
    if name != "rule_gap":
        with pytest.raises(UserError, match=f"^{flag} is 1.0: it never passes 1, give less"):
            AlarmConfig(**{name: 1.0})


ALARM = Alarm(7, "entropy", 0.1, 0.2, "is 0.1, below --alarms.entropy-floor 0.2")
HERE = Path("step_5")


def test_what_follows_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    stops = Watch(AlarmConfig(), speaks=True)
    assert stops.judge([], HERE, True) == "go on" and stops.judge([ALARM], HERE, True) == "stop"
    assert stops.last_words([ALARM], HERE) == f"{ALARM}; stopped, step_5 is the last checkpoint"
    warns = Watch(AlarmConfig(action="warn"), speaks=True)
    assert warns.judge([ALARM], HERE, True) == warns.judge([ALARM], HERE, True) == "go on"
    assert capsys.readouterr().err == f"{ALARM}; going on\n"  # once for an alarm that lasts
    assert len(warns.take_records(8)["alarms"]) == 2 and warns.take_records(9) == {}
    assert warns.judge([ALARM], HERE, can_go_on=False) == "stop"


def test_rollbacks_are_counted_over_restarts_and_recorded_in_the_next_line() -> None:
    config = AlarmConfig(action="rollback", max_rollbacks=2)
    watch = Watch(config, speaks=False)
    assert watch.judge([ALARM], None, True) == "stop"  # nothing to go back to
    watch = Watch(config, speaks=False)
    saved = json.loads(json.dumps(watch.state_dict()))
    for count in (1, 2):
        assert watch.judge([ALARM], HERE, True) == "rollback"
        watch.rolled_back([ALARM], saved, 5)
        assert watch.rollbacks == count
        if count == 1:  # step 6 goes well this time; the second rollback drops its line, not what it said of the first
            assert len(watch.take_records(6)["alarms"]) == 1
    records = watch.take_records(6)["alarms"]
    assert [(r["step"], r["action"], r["rolled_back_to"]) for r in records] == [(7, "rollback", 5)] * 2
    continued = Watch(config, speaks=False)
    continued.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert continued.judge([ALARM], HERE, True) == "stop"
    assert continued.last_words([ALARM], HERE).endswith("stopped after 2 rollback(s), step_5 is the last checkpoint")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"entropy_floor": 0}, "--alarms.entropy-floor is 0"),
        ({"reward_drop": math.nan}, "--alarms.reward-drop is nan"),
        ({"grad_norm_factor": 1}, "--alarms.grad-norm-factor is 1: give more than 1"),
        ({"window": 0}, "--alarms.window is 0"),
        ({"max_rollbacks": -1}, "--alarms.max-rollbacks is -1"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        AlarmConfig(**setting)
    assert said in str(refused.value)


def test_what_fails_within_a_step_becomes_an_alarm(capsys: pytest.CaptureFixture[str]) -> None:
    guard, seen = Watch(AlarmConfig(), speaks=True).guard(7), []
    with guard("sampling"):
        seen.append("sampled")
    assert guard.alarms == [] and guard.can_go_on
    with guard("grad_norm"):
        raise FloatingPointError("gradient norm is nan")
    assert [str(alarm) for alarm in guard.alarms] == ["alarm at step 7: grad_norm is not finite (gradient norm is nan)"]
    assert guard.can_go_on  # the update was left out
    with guard("evaluation"):
        raise NotFiniteError("the weights are broken")
    assert str(guard.alarms[1]) == "alarm at step 7: evaluation failed: the weights are broken" and not guard.can_go_on
    with pytest.raises(UserError, match="no memory"), guard("sampling"):
        raise UserError("no memory")  # a mistake is none of its business
    assert len(guard.alarms) == 2 and seen == ["sampled"]
