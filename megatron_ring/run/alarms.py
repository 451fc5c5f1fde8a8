"""Alarms: rules over a run's metrics that say when it collapses, with the figures. What follows is the run's affair.

Rules see one step after another; what they remember is in checkpoints, so that a continued run is judged alike.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.operations import AlarmConfig

MEANS = {
    "watch/length_correlation": "length_correlation",
    "watch/repetition": "repetition",
    "judge/disagreement": "judge_disagreement",
    "reward/judge_failed_fraction": "judge_failures",
}
"""Metrics whose mean over the window has a bound, and its setting."""
GAP = "watch/rule_gap"
FINITE = ("loss", "validation/loss", "loss/policy", "entropy", "kl", "grad_norm", "reward/mean")


@dataclass(frozen=True)
class Alarm:
    """One rule that was broken.

    Attributes:
        step: the step that set it off, from 1.
        metric: its key in metrics.jsonl.
        value, bound: None where a number is not finite, or was not even there.
        why: in words, with the numbers.
    """

    step: int
    metric: str
    value: float | None
    bound: float | None
    why: str

    def __str__(self) -> str:
        return f"alarm at step {self.step}: {self.metric} {self.why}"

    def to_json(self) -> dict[str, Any]:
        """As metrics.jsonl holds it."""
        return {"step": self.step, "metric": self.metric, "value": self.value, "bound": self.bound, "why": self.why}


class Alarms:
    """The rules that a configuration switches on, and what they remember."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self._grad_norms: deque[float] = deque(maxlen=config.window)
        self._losses: deque[float] = deque(maxlen=config.window)
        self._rewards: deque[float] = deque(maxlen=config.window)
        self._best: float | None = None
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=config.window) for name in (*MEANS, GAP)}
        self._least_gap: float | None = None
        self._stage: int | None = None

    def check(self, metrics: Mapping[str, Any]) -> list[Alarm]:
        """The rules that this step breaks. `metrics` are its own, under their keys; some may be missing where the step
        failed. A reward is compared with those of the same stage of the data alone."""
        step = metrics["step"]
        broken_numbers = [
            Alarm(step, name, None, None, f"is {metrics[name]}") for name in FINITE if not _fine(metrics, name)
        ]
        if broken_numbers:
            return broken_numbers
        rules = [self._entropy(metrics), self._loss(metrics), self._grad_norm(metrics), self._reward(metrics)]
        self._remember(metrics)
        rules += [self._mean(name, setting) for name, setting in MEANS.items() if metrics.get(name) is not None]
        rules.append(self._gap(metrics))
        return [Alarm(step, *broken) for broken in rules if broken is not None]

    def spikes(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the loss or the gradient norm of a step breaks its rule; nothing is remembered."""
        return self._loss(metrics) is not None or self._grad_norm(metrics) is not None

    def _remember(self, metrics: Mapping[str, Any]) -> None:
        for values, name in ((self._losses, "loss"), (self._grad_norms, "grad_norm")):
            if metrics.get(name) is not None:
                values.append(metrics[name])
        for name, values in self._recent.items():
            if metrics.get(name) is not None:
                values.append(metrics[name])

    def _entropy(self, metrics: Mapping[str, Any]) -> tuple[str, float, float, str] | None:
        value, floor = metrics.get("entropy"), self.config.entropy_floor
        if value is None or floor is None or value >= floor:
            return None
        return "entropy", value, floor, f"is {value:.4g}, below --alarms.entropy-floor {floor:g}"

    def _grad_norm(self, metrics: Mapping[str, Any]) -> tuple[str, float, float, str] | None:
        value, factor, before = metrics.get("grad_norm"), self.config.grad_norm_factor, list(self._grad_norms)
        if value is None or factor is None or len(before) < self.config.window:
            return None
        median = statistics.median(before)
        if value <= factor * median:
            return None
        why = f"is {value:.4g}, above {factor * median:.4g}: --alarms.grad-norm-factor {factor:g} x its median {median:.4g}"
        return "grad_norm", value, factor * median, f"{why} over {self.config.window} steps"

    def _loss(self, metrics: Mapping[str, Any]) -> tuple[str, float, float, str] | None:
        value, rise, before = metrics.get("loss"), self.config.loss_rise, list(self._losses)
        if value is None or rise is None or len(before) < self.config.window:
            return None
        median = statistics.median(before)
        if value <= median + rise:
            return None
        why = f"is {value:.4g}, above {median + rise:.4g}: --alarms.loss-rise {rise:g} over its median {median:.4g}"
        return "loss", value, median + rise, f"{why} of {self.config.window} steps"

    def _reward(self, metrics: Mapping[str, Any]) -> tuple[str, float, float, str] | None:
        value, drop = metrics.get("reward/mean"), self.config.reward_drop
        if metrics.get("data/stage") != self._stage:
            self._stage, self._best = metrics.get("data/stage"), None
            self._rewards.clear()
            self._recent[GAP].clear()
            self._least_gap = None
        if value is None:
            return None
        self._rewards.append(value)
        if len(self._rewards) < self.config.window:
            return None
        mean = statistics.fmean(self._rewards)
        self._best = mean if self._best is None else max(mean, self._best)
        if drop is None or mean >= self._best - drop:
            return None
        why = f"over {self.config.window} steps is {mean:.4g}, below {self._best - drop:.4g}: --alarms.reward-drop {drop:g}"
        return "reward/mean", mean, self._best - drop, f"{why} under its best {self._best:.4g}"

    def _mean(self, metric: str, setting: str) -> tuple[str, float, float, str] | None:
        values, bound = self._recent[metric], getattr(self.config, setting)
        if bound is None or len(values) < self.config.window:
            return None
        mean = statistics.fmean(values)
        if mean <= bound:
            return None
        flag = f"--alarms.{setting.replace('_', '-')}"
        return metric, mean, bound, f"over {self.config.window} steps is {mean:.4g}, above {flag} {bound:g}"

    def _gap(self, metrics: Mapping[str, Any]) -> tuple[str, float, float, str] | None:
        values, rise = self._recent[GAP], self.config.rule_gap
        if metrics.get(GAP) is None or len(values) < self.config.window:
            return None
        mean = statistics.fmean(values)
        self._least_gap = mean if self._least_gap is None else min(mean, self._least_gap)
        if rise is None or mean <= self._least_gap + rise:
            return None
        why = (
            f"over {self.config.window} steps is {mean:.4g}, above {self._least_gap + rise:.4g}: --alarms.rule-gap {rise:g}"
        )
        return GAP, mean, self._least_gap + rise, f"{why} over its least {self._least_gap:.4g}"

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as JSON."""
        return {
            "grad_norms": list(self._grad_norms),
            "losses": list(self._losses),
            "rewards": list(self._rewards),
            "best": self._best,
            "stage": self._stage,
            "recent": {name: list(values) for name, values in self._recent.items()},
            "least_gap": self._least_gap,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Judge as the one did that wrote `state`; of a longer window the last steps are taken."""
        self._grad_norms = deque(state["grad_norms"], maxlen=self.config.window)
        self._losses = deque(state.get("losses", ()), maxlen=self.config.window)  # older checkpoints have none
        self._rewards = deque(state["rewards"], maxlen=self.config.window)
        self._best, self._stage = state["best"], state["stage"]
        recent = state.get("recent", {})  # older checkpoints have none
        self._recent = {name: deque(recent.get(name, ()), maxlen=self.config.window) for name in (*MEANS, GAP)}
        self._least_gap = state.get("least_gap")


def _fine(metrics: Mapping[str, Any], name: str) -> bool:
    return metrics.get(name) is None or math.isfinite(metrics[name])
