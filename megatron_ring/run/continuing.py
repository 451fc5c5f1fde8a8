"""What a continued run does otherwise than the run before would have done, in lines to print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import UserError


def changed_ranks(config: RLConfig, schedule: BudgetSchedule) -> list[str]:
    """Whether Phi is another because the data-parallel ranks are. `schedule` has its state."""
    if not config.objective.has_budget or schedule.before[0] == schedule.first:
        return []
    was, now = (f"{tokens:,}" for tokens in (schedule.before[0], schedule.first))
    return [
        f"with the data-parallel ranks before, Phi was {was} where it is {now} now (--budget.scope rank); to keep it, "
        f"continue on as many"
    ]


def stretched_schedules(config: RLConfig, schedule: BudgetSchedule, start: int, before: int | None) -> list[str]:
    """Whether the steps from the 0-based `start` on have another Phi or learning rate because --steps was `before` (None:
    not known). The first such step is named."""
    steps, optimizer = config.steps, config.optimizer
    if before is None or before == steps:
        return []
    budgeted = config.objective.has_budget
    for step in range(start, steps):
        changes = []
        was, now = (schedule.tokens(step, total) for total in (before, steps))
        if budgeted and was != now:
            changes.append(f"Phi ({schedule.name}) is {now:,} where it was to be {was:,}")
        rate, new_rate = (optimizer.lr_at(step, total) for total in (before, steps))
        if rate != new_rate:
            changes.append(f"the learning rate ({optimizer.schedule}) is {new_rate:.4g} where it was to be {rate:.4g}")
        if changes:
            return [f"--steps was {before:,} and is {steps:,}, which schedules stretch to: in step {step + 1:,} "
                    f"{' and '.join(changes)}"]  # fmt: skip
    return []


def check_compositions(now: str | None, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the rewards' compositions have the fingerprint of a checkpoint's `extra`; older ones hold
    none."""
    if "compositions" in saved and saved["compositions"] != now:
        raise UserError(
            f"the compositions are not those of the checkpoint (fingerprint {now}, saved {saved['compositions']}): resume "
            f"with the same --rewards.compositions file, or start a new run"
        )
