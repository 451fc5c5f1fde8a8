"""Configurations of how an RL run is watched: alarms, held-out evaluation, Weights & Biases. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require, require_temperature
from megatron_ring.config.sampling import SamplingConfig

OF_REWARDS = ("length_correlation", "repetition", "rule_gap", "judge_disagreement", "judge_failures")
"""Alarms of RL alone."""


@dataclass(frozen=True)
class AlarmConfig:
    """What counts as a collapse, and what is done then. A loss, gradient or logit that is not finite always counts."""

    action: Literal["stop", "rollback", "warn", "skip"] = "stop"
    """stop: end with exit status 3. rollback: go on from the last checkpoint with other data. warn: say so and go on; an
    update that is not finite is left out. skip (pretraining): as warn, and the update of a step whose loss or gradient norm
    sets off an alarm is left out."""
    entropy_floor: float | None = None
    """Least entropy (nats per token; default: none)."""
    grad_norm_factor: float | None = None
    """Largest gradient norm, as a multiple of its median over the window before (default: none)."""
    loss_rise: float | None = None
    """How far the loss may rise above its median over the window before (nats per token; default: any)."""
    reward_drop: float | None = None
    """How far the mean reward over the window may fall below its best so far in the data's stage (default: any)."""
    length_correlation: float | None = None
    """RL: largest watch/length_correlation, mean over the window: a reward that goes by length (default: any)."""
    repetition: float | None = None
    """RL: largest watch/repetition, mean over the window (default: any)."""
    rule_gap: float | None = None
    """RL: how far watch/rule_gap, mean over the window, may rise above its least so far in the data's stage: the trained
    reward rises without the rule beside it (default: any)."""
    judge_disagreement: float | None = None
    """RL: largest judge/disagreement, mean over the window (default: any)."""
    judge_failures: float | None = None
    """RL: largest reward/judge_failed_fraction, mean over the window (default: any)."""
    window: int = 20
    """Steps of the medians and the means; without so many there is no alarm that needs them."""
    max_rollbacks: int = 3
    """Rollbacks of a run; the next alarm stops it."""

    def check_no_rewards(self, what: str) -> None:
        """Raise `UserError` for alarms of rewards; `what` has none."""
        for name in OF_REWARDS:
            given = getattr(self, name) is not None
            require(not given, f"--alarms.{name.replace('_', '-')}: {what} has no rewards to watch")

    def __post_init__(self) -> None:
        for name in ("entropy_floor", "grad_norm_factor", "loss_rise", "reward_drop", *OF_REWARDS):
            value = getattr(self, name)
            message = f"--alarms.{name.replace('_', '-')} is {value}, not a positive number"
            require(value is None or 0 < value < math.inf, message)
        for name in ("length_correlation", "repetition", "judge_disagreement", "judge_failures"):
            value = getattr(self, name)
            said = f"--alarms.{name.replace('_', '-')} is {value}: it never passes 1, give less"
            require(value is None or value < 1, said)
        factor = self.grad_norm_factor
        require(factor is None or factor > 1, f"--alarms.grad-norm-factor is {factor}: give more than 1")
        require(self.window >= 1, f"--alarms.window is {self.window}, below 1")
        require(self.max_rollbacks >= 0, f"--alarms.max-rollbacks is {self.max_rollbacks}, below 0")


@dataclass(frozen=True)
class HeldOutConfig:
    """Evaluation on held-out prompts during training."""

    prompts: Path | None = None
    """Prompt file (JSONL or parquet) that is never trained on (default: no evaluation)."""
    every: int = 20
    """Steps between evaluations; the last step has one, too."""
    samples_per_problem: int = 1
    """Responses drawn for each problem; pass@1 is their mean."""
    temperature: float = 1.0
    """Softmax temperature; 0 takes the most likely token."""
    top_p: float = 0.95
    """Nucleus: the smallest set of tokens with at least this probability is kept (0..1]."""
    max_new_tokens: int | None = None
    """Longest response (tokens; default: --sampling.max-new-tokens)."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"--evaluation.every is {self.every}, below 1")
        count = self.samples_per_problem
        require(count >= 1, f"--evaluation.samples-per-problem is {count}, below 1")
        require_temperature(self.temperature, "--evaluation.temperature")
        require(0 < self.top_p <= 1, f"--evaluation.top-p is {self.top_p}, outside (0, 1]")
        require(
            count == 1 or self.temperature > 0,
            f"--evaluation.samples-per-problem is {count}: at --evaluation.temperature 0 all would be the same",
        )
        longest = self.max_new_tokens
        require(longest is None or longest >= 1, f"--evaluation.max-new-tokens is {longest}, below 1")

    def sampling(self, training: SamplingConfig) -> SamplingConfig:
        """How evaluation samples: as training does, but for the distribution and the length, and with the policy's own
        weights, as it is the policy that is judged."""
        longest = self.max_new_tokens or training.max_new_tokens
        return replace(training.plain, temperature=self.temperature, top_p=self.top_p, max_new_tokens=longest)


@dataclass(frozen=True)
class WandbConfig:
    """Metrics in Weights & Biases, beside metrics.jsonl and TensorBoard."""

    project: str | None = None
    """Project that figures are sent to (default: nothing is sent). Needs `pip install wandb`; its account, server and mode
    are set by its own environment variables (WANDB_API_KEY, WANDB_BASE_URL, WANDB_MODE)."""
    name: str | None = None
    """Name of the run there (default: that of the run directory)."""

    def __post_init__(self) -> None:
        require(self.name is None or self.project is not None, "--wandb.name needs --wandb.project")
