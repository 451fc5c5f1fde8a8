"""What a continued run does otherwise than the run before would have done, in lines to print, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.stage import StageConfig, TrainingConfig
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


def stretched_rates(optimizer: OptimizerConfig, start: int, before: int | None, now: int) -> list[str]:
    """The same of SFT, whose learning rate runs over all `now` steps of --epochs, not over --max-steps."""
    for step in range(start, now) if before not in (None, now) else ():
        was, rate = (optimizer.lr_at(step, total) for total in (before or now, now))
        if was != rate:
            return [f"the epochs had {before:,} steps and have {now:,}, which the learning rate ({optimizer.schedule}) "
                    f"stretches to: in step {step + 1:,} it is {rate:.4g} where it was to be {was:.4g}"]  # fmt: skip
    return []


def changed_layout(before: Mapping[str, int], now: Mapping[str, int] | None) -> list[str]:
    """Whether the run goes on in another layout than that of its checkpoint."""
    differing = {name: (before.get(name, size), size) for name, size in (now or {}).items()}
    changes = [f"{name} {was} -> {size}" for name, (was, size) in differing.items() if was != size]
    same = "sums are taken in another order, so that numbers differ in their last digits"
    return [f"another layout than before ({', '.join(changes)}): {same}"] if changes else []


def another_configuration(run_dir: Path, differing: Mapping[str, tuple[Any, Any]]) -> UserError:
    """The error of a run directory whose run had other settings: setting -> (before, now)."""
    shown = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in list(differing.items())[:4])
    more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
    return UserError(f"--run-dir {run_dir}: holds a run of another configuration ({shown}{more}); choose another --run-dir")


CONTENT = {
    "data.tokenizer": "the tokenizer or its chat template",
    "data.train": "the training data",
    "data.validation": "the validation data",
    "init_from": "the weights of --init-from",
    "rewards.reward_model": "the reward model",
    "rewards.judge.checkpoint": "the judge",
    "rewards.judge.tokenizer": "the judge's tokenizer or its chat template",
    "rewards.judge": "what this version of the program asks its judge",
}
"""Settings whose content a checkpoint has the fingerprint of."""


def check_content(
    config: StageConfig, now: Mapping[str, str], saved: Mapping[str, Any] | None, moved: Mapping[str, tuple[Any, Any]]
) -> dict[str, str]:
    """The fingerprints that the run's checkpoints are to hold.

    Args:
        now: fingerprints by setting; without `init_from` where those weights are gone.
        saved: `extra` values of the checkpoint that the run goes on from; None where it begins.
        moved: settings that name another path than before, and both.

    Raises:
        UserError: names what has another content than before. What an older checkpoint has no fingerprint of may not move.
    """
    if saved is None:
        return dict(now)
    before: Mapping[str, str] = saved.get("content", {})
    unknown = {name: moved[name] for name in moved if name in CONTENT and name not in before and name in now}
    if "data.prompts" in moved and "sources" not in saved.get("prompts", {}):  # `PromptStream` compares the rest
        unknown["data.prompts"] = moved["data.prompts"]
    if unknown:
        raise another_configuration(getattr(config, "run_dir", Path()), unknown)
    for name, what in CONTENT.items():
        if name not in before or before[name] == now.get(name):
            continue
        unneeded = not (isinstance(config, TrainingConfig) and config.needs_first_weights(saved))
        if name == "init_from" and unneeded and not (name in moved and name in now):  # replaced where it lay, or gone
            continue
        raise UserError(
            f"--{name.replace('_', '-')}: {what}: the content is not that of the run so far (fingerprint "
            f"{now.get(name, 'none')}, was {before[name]}): continue with what it had, wherever that lies now, or choose "
            f"another --run-dir"
        )
    return {**now, **before}


def check_compositions(now: str | None, saved: Mapping[str, Any]) -> None:
    """Raise `UserError` unless the rewards' compositions have the fingerprint of a checkpoint's `extra`; older ones hold
    none."""
    if "compositions" in saved and saved["compositions"] != now:
        raise UserError(
            f"the compositions are not those of the checkpoint (fingerprint {now}, saved {saved['compositions']}): resume "
            f"with the same --rewards.compositions file, or start a new run"
        )
