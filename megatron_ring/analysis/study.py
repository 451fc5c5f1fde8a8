"""A study: the same settings under several seeds, read from finished run directories and compared seed by seed.

A setting may be one run or several in a row (stages); their steps then count on. Evaluations have names of their own, such
as `before` and `after`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.analysis.read_run import Evaluation, Record, Run, number, read_evaluation, read_run
from megatron_ring.analysis.spread import (
    Difference,
    Sample,
    coefficient_of_variation,
    paired_seeds,
    sample,
    step_to_step_deviation,
    step_to_step_variation,
)
from megatron_ring.errors import UserError

WINDOW = 10  # steps of the means that tell level and collapse
COLLAPSED = 0.5  # a collapse: the mean reward of a window falls below this part of the best window's before it

# What is measured in one run: metrics.jsonl key and statistic.
Statistic = Callable[[Sequence[float]], float]
Measures = Mapping[str, tuple[str, Statistic]]


@dataclass(frozen=True)
class Cell:
    """One setting under one seed: its runs in a row and its evaluations by name."""

    setting: str
    seed: int
    runs: tuple[Run, ...]
    evaluations: Mapping[str, Evaluation]

    @property
    def metrics(self) -> list[Record]:
        """Records of all steps; steps of a later run count on from the one before."""
        rows, offset = [], 0
        for run in self.runs:
            rows += [{**row, "step": int(row["step"]) + offset} for row in run.metrics]
            offset = rows[-1]["step"]
        return rows

    def series(self, key: str) -> list[float]:
        """Values of a metric, step by step. Raises UserError when a step lacks it."""
        values = [number(row, key) for row in self.metrics]
        if any(math.isnan(value) for value in values):
            raise UserError(f"{self.runs[-1].path / 'metrics.jsonl'}: {key} is missing or NaN in some step")
        return values

    def pass_rate(self, evaluation: str, domain: str | None = None) -> float:
        """pass@1 of an evaluation, of one domain or all problems."""
        result = self.evaluations[evaluation].result
        source = result if domain is None else result["by_domain"][domain]
        return number(source, "pass_at_1")

    @property
    def held_out(self) -> dict[int, float]:
        """pass@1 of all problems by step: of the evaluation `before` at step 0, of the run's own, and of `after` at the last
        step, where it has them."""
        rows, key = self.metrics, "evaluation/pass_at_1"
        found = {int(row["step"]): number(row, key) for row in rows if key in row}
        if "before" in self.evaluations:
            found = {0: self.pass_rate("before"), **found}
        return found if "after" not in self.evaluations else {**found, rows[-1]["step"]: self.pass_rate("after")}


@dataclass(frozen=True)
class Row:
    """One measure over settings: per setting a number for each seed (in the order of seeds), and their spread."""

    name: str
    values: Mapping[str, tuple[float, ...]]

    def sample(self, setting: str) -> Sample:
        return sample(self.values[setting])

    def difference(self, first: str, second: str) -> Difference:
        """second − first, seed by seed."""
        return paired_seeds(self.values[first], self.values[second])


def best_by_others(values: Mapping[str, Sequence[float]]) -> list[str] | None:
    """For each seed the setting with the best mean over the other seeds (the first of equals): judged on the seed that is
    left out it looks no better than it is. None for one seed."""
    seeds = len(next(iter(values.values())))
    if seeds < 2:
        return None

    def mean_without(setting: str, seed: int) -> float:
        return fmean(value for place, value in enumerate(values[setting]) if place != seed)

    return [max(values, key=lambda setting: mean_without(setting, seed)) for seed in range(seeds)]


def chosen(values: Mapping[str, Sequence[float]], settings: Sequence[str]) -> list[float]:
    """Of each seed the value of its own setting."""
    return [values[setting][seed] for seed, setting in enumerate(settings)]


def read_cell(setting: str, seed: int, runs: Sequence[Path], evaluations: Mapping[str, Path]) -> Cell:
    """Read what one setting's runs and evaluations left. Raises UserError for what is not there."""
    read = {name: read_evaluation(path) for name, path in evaluations.items()}
    return Cell(setting, seed, tuple(read_run(path) for path in runs), read)


def by_setting(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Cells by setting in the order given, each in the order of its seeds. Raises UserError unless their seeds agree."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.setting, []).append(cell)
    for group in groups.values():
        group.sort(key=lambda cell: cell.seed)
    seeds = {tuple(cell.seed for cell in group) for group in groups.values()}
    if len(seeds) > 1:
        raise UserError(f"settings were run under different seeds: {sorted(seeds)}; run what is missing")
    return groups


def measure(groups: Mapping[str, Sequence[Cell]], name: str, of: Callable[[Cell], float]) -> Row:
    """One number for each cell."""
    return Row(name, {setting: tuple(of(cell) for cell in cells) for setting, cells in groups.items()})


def first_window(values: Sequence[float]) -> float:
    """Mean of the first `WINDOW` steps."""
    return math.fsum(values[:WINDOW]) / len(values[:WINDOW])


def last_window(values: Sequence[float]) -> float:
    """Mean of the last `WINDOW` steps."""
    return math.fsum(values[-WINDOW:]) / len(values[-WINDOW:])


def best_window(values: Sequence[float]) -> float:
    """The largest mean of `WINDOW` steps in a row."""
    return max(_windows(values))


def collapse_step(values: Sequence[float]) -> int | None:
    """The step (from 1) that ends the first window whose mean is below `COLLAPSED` of the best window before it."""
    best = -math.inf
    for end, mean in enumerate(_windows(values), start=min(WINDOW, len(values))):
        best = max(best, mean)
        if mean < COLLAPSED * best:
            return end
    return None


def spike_ratio(values: Sequence[float]) -> float:
    """The largest value over the median."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[-1] / (ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)


def _windows(values: Sequence[float]) -> list[float]:
    width = min(WINDOW, len(values))
    return [math.fsum(values[start : start + width]) / width for start in range(len(values) - width + 1)]


STEADINESS: Measures = {
    "trained tokens, CV": ("tokens/trained", coefficient_of_variation),
    "trained tokens, step to step": ("tokens/trained", step_to_step_variation),
    "gradient norm, CV": ("grad_norm", coefficient_of_variation),
    "gradient norm, step to step": ("grad_norm", step_to_step_variation),
    "gradient norm, largest over median": ("grad_norm", spike_ratio),
    "reward, step to step (not relative)": ("reward/mean", step_to_step_deviation),
    "response length, step to step": ("response_length/mean", step_to_step_variation),
}
TIMES: Measures = {
    "step, processor time, CV": ("processor/step", coefficient_of_variation),
    "training, processor time, CV": ("processor/train", coefficient_of_variation),
    "sampling, processor time, CV": ("processor/sample", coefficient_of_variation),
    "step, wall time, CV": ("time/step", coefficient_of_variation),
    "training, wall time, CV": ("time/train", coefficient_of_variation),
    "step, mean processor time (s)": ("processor/step", fmean),
}


def measure_all(groups: Mapping[str, Sequence[Cell]], measures: Measures, skip: int = 0) -> list[Row]:
    """A row for each measure, over the steps after the first `skip`."""

    def of(key: str, statistic: Statistic) -> Callable[[Cell], float]:
        return lambda cell: statistic(cell.series(key)[skip:])

    return [measure(groups, name, of(key, statistic)) for name, (key, statistic) in measures.items()]


def as_json(rows: Sequence[Row], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Rows as plain data: values by seed, mean and deviation by setting, differences of the pairs that a row has."""
    result: dict[str, Any] = {}
    for row in rows:
        settings = {
            setting: {"values": list(values), "mean": row.sample(setting).mean, "sd": row.sample(setting).sd}
            for setting, values in row.values.items()
        }
        differences = {}
        for first, second in pairs:
            if first in row.values and second in row.values:
                found = row.difference(first, second)
                ends = None if found.interval is None else [found.interval.low, found.interval.high]
                differences[f"{second} - {first}"] = {"mean": found.value, "interval_95": ends}
        result[row.name] = {"settings": settings, "differences": differences}
    return result
