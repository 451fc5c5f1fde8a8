"""Learning-rate schedules: their formulas, megatron-core's own, and a decay that begins at any checkpoint."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.errors import UserError

STEPS, WARMUP, DECAY = 200, 20, 60
FORMULAS = {
    "linear": lambda r: 1 - r,
    "cosine": lambda r: 0.5 * (1 + math.cos(math.pi * r)),
    "sqrt": lambda r: 1 - math.sqrt(r),
    "exponential": lambda r: 2 ** (1 - r) - 1,
}


def config(**more: Any) -> OptimizerConfig:
    return OptimizerConfig(lr=1e-3, min_lr=1e-4, warmup_steps=WARMUP, **more)


def of_megatron(schedule: str, step: int, shape: str | None = None) -> float:
    """megatron-core counts a step when it is done; its warm-up ends at the step that ours has, its decay one later."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    scheduler = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[]), 0.0, 1e-3, 1e-4, WARMUP, STEPS, schedule, 0.0, 0.0, 1, "constant",
        wsd_decay_steps=DECAY if schedule == "WSD" else None, lr_wsd_decay_style=shape,
    )  # fmt: skip
    scheduler.num_steps = step
    return float(scheduler.get_lr({}))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_are_those_of_megatron_core(schedule: Any) -> None:
    ours = config(schedule=schedule)
    for step in range(STEPS):
        counted = step + 1 if step < WARMUP else step
        assert ours.lr_at(step, STEPS) == pytest.approx(of_megatron(schedule, counted), rel=1e-12), step
    assert ours.lr_at(WARMUP, STEPS) == 1e-3


@pytest.mark.parametrize("shape", FORMULAS)
def test_wsd(shape: Any) -> None:
    ours = config(schedule="wsd", decay_steps=DECAY, decay_shape=shape)
    names = {"sqrt": "minus_sqrt"}
    for step in range(STEPS):
        if step < WARMUP:
            wanted = 1e-3 * (step + 1) / WARMUP
        elif step < STEPS - DECAY:
            wanted = 1e-3
        else:
            wanted = 1e-4 + 9e-4 * FORMULAS[shape]((step - STEPS + DECAY) / DECAY)
            assert wanted == pytest.approx(of_megatron("WSD", step, names.get(shape, shape)), rel=1e-12), step
        assert ours.lr_at(step, STEPS) == pytest.approx(wanted, rel=1e-12), step


def test_a_decay_begins_at_any_checkpoint() -> None:
    """Other --steps and --optimizer.decay-steps change nothing of what is done, and decay from there on."""
    stable = config(schedule="wsd", decay_steps=0)
    assert [stable.lr_at(step, 10**6) for step in (WARMUP, 777, 10**6 - 1)] == [1e-3] * 3
    for done in (50, 777):
        decaying = dataclasses.replace(stable, decay_steps=40)
        total = done + 40
        assert [decaying.lr_at(step, total) for step in range(done)] == [stable.lr_at(step, 10**6) for step in range(done)]
        assert decaying.lr_at(done, total) == 1e-3
        rates = [decaying.lr_at(step, total) for step in range(done, total)]
        assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(1e-4 + 9e-4 / 40)


def test_a_tenth_decays_where_nothing_else_is_said() -> None:
    assert OptimizerConfig(schedule="wsd").decay(1000) == 100
    with pytest.raises(UserError, match=r"belongs to --optimizer\.schedule wsd, which is cosine"):
        OptimizerConfig(decay_steps=5)
    with pytest.raises(UserError, match=r"--optimizer\.warmup-steps is -1"):
        OptimizerConfig(warmup_steps=-1)
