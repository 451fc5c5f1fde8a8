"""A reward model's training, as `run.epochs.EpochTask`: preferences, their loss, and validation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from megatron_ring.config.reward_model import RewardModelConfig
from megatron_ring.data.preference_data import PreferenceDataset
from megatron_ring.data.writing import write_atomically
from megatron_ring.reward_models.measures import summary
from megatron_ring.reward_models.scoring import score_pairs
from megatron_ring.run.directory import RunDirectory
from megatron_ring.training.pair_loss import PairLoss
from megatron_ring.training.trainer import StepResult, Trainer

MOST_SUBSETS = 50
"""Subsets of a validation that metrics tell apart; its file has all."""


class Preferences:
    """Pairs to learn from, and those to validate on."""

    def __init__(
        self, config: RewardModelConfig, run: RunDirectory, data: PreferenceDataset, validation: PreferenceDataset | None
    ) -> None:
        self.config, self.run, self.data, self.validation = config, run, data, validation
        self.loss = PairLoss(config.centring)
        self.steps_per_epoch, self.batch = data.steps_per_epoch, data.batch

    def introduction(self, start: int) -> list[str]:
        data, router = self.data, self.config.router
        notes = [part.note for part in (data, self.validation) if part is not None and part.note]
        dropped = f", {data.dropped} too long and left out" if data.dropped else ""
        dropped += f", {data.dropped_controls} with control tokens left out" if data.dropped_controls else ""
        margins = f", {data.with_margin} with a margin" if data.with_margin else ""
        resumed = f", continuing after step {start}" if start else ""
        told = f"{len(data.pairs)} pairs{dropped}{margins}, {data.tokens:,} tokens in {data.steps_per_epoch} steps an epoch"
        weights = f"balance {router.balance:g} and z {router.z:g}, over the tokens of both conversations"
        return [*notes, told + resumed, f"router losses are trained on besides: {weights}"]

    def step_metrics(self, result: StepResult) -> dict[str, Any]:
        return {"pairs": result.loss_tokens, **{name: result.mean(name) for name in result.sums}}

    def validate(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """Figures of the validation file; all of them go to `validation/step_N.json`."""
        held = self.validation
        if held is None:
            return {}
        scored = score_pairs(trainer.model, trainer.context, held.pairs, held.capacity, held.pad_id)
        found = summary(scored, self.config.calibration_bins)
        if self.run.writes and "accuracy" in found:  # else there is an alarm
            path = self.run.path / "validation" / f"step_{step}.json"
            write_atomically(path, (json.dumps({"step": step, **found}, indent=1) + "\n").encode())
        return validation_metrics(found)

    def shown(self, metrics: Mapping[str, Any]) -> str:
        return f"loss {metrics.get('loss', math.nan):.3f} accuracy {metrics.get('accuracy', math.nan):.3f}"


def validation_metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """A summary under the keys of metrics.jsonl: numbers alone."""
    metrics = {f"validation/{name}": value for name, value in found.items() if isinstance(value, int | float)}
    subsets = list(found.get("subsets", {}).items())[:MOST_SUBSETS]
    return metrics | {f"validation/accuracy/{name}": part["accuracy"] for name, part in subsets}
