"""The study of SFT epochs, one start at a time: what a (seed, epochs) pair of SFT and RL left, as one small file.

A start's file has all that the page needs, so that the starts of a study may be run on several machines and gathered.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_ring.analysis.read_run import (
    Epoch,
    Run,
    is_number,
    number,
    read_evaluation,
    read_run,
    validations,
)
from megatron_ring.analysis.spread import MAX_SEEDS
from megatron_ring.analysis.study import collapse_step
from megatron_ring.analysis.study_cost import JobTime, job_time
from megatron_ring.errors import UserError

FORM = "epochs-1"  # what this module writes; a change of meaning gets another name
# Settings of the RL run that may differ between the starts of a study: the start itself, the seed, where things lie, and
# what changes no result.
_OWN = ("run_dir", "init_from", "seed", "data.prompts", "data.tokenizer", "evaluation.prompts", "parallel", "keep_last",
        "save_every", "save_optimizer", "async_save", "grace_seconds", "wandb", "offload_optimizer")  # fmt: skip
RESULTS = "results"


@dataclass(frozen=True)
class Start:
    """One SFT run (or its checkpoint after `epochs` epochs) and the RL run from it.

    Attributes:
        validation: of each epoch of SFT up to the start: epoch, tokens so far, loss and entropy (nats per token).
        before: pass@1 on the held-out problems before RL.
        evaluations: step of RL and pass@1 after it, in order; the last is after the last step.
        reward, entropy, tokens: of each step of RL: mean reward, entropy (nats), trained tokens.
        problems: held-out problems of an evaluation.
        settings: of the RL run, but for paths and the seed; equal in all starts of a study.
        seconds: of the steps of SFT and RL on the machine that ran them; as far as they are known also of the processes
            (`sft process`, `before process`, `rl process`) and how many ran side by side (`beside`).
    """

    seed: int
    epochs: int
    one_run: bool
    validation: list[list[float]]
    before: float
    evaluations: list[list[float]]
    reward: list[float]
    entropy: list[float]
    tokens: list[float]
    problems: int
    settings: dict[str, Any]
    seconds: dict[str, float]

    @property
    def start(self) -> Epoch:
        """As the rules of the choice see it; its checkpoint is named by its epochs."""
        epoch, tokens, loss, entropy = self.validation[-1]
        return Epoch(str(self.epochs), epoch, self.epochs, tokens, entropy, loss)

    @property
    def last(self) -> float:
        """pass@1 after the last step."""
        return self.evaluations[-1][1]

    @property
    def best(self) -> float:
        """The best pass@1 of all evaluations of the RL run."""
        return max(rate for _, rate in self.evaluations)

    @property
    def rl_tokens(self) -> float:
        return math.fsum(self.tokens)

    @property
    def ratio(self) -> float:
        """Token efficiency: tokens that RL trained over those that SFT did."""
        return self.rl_tokens / self.start.tokens

    def job_time(self, kind: str) -> JobTime | None:
        """Of its SFT (`sft`), evaluation (`before`) or RL (`rl`); None where it is not known."""
        seconds, beside = self.seconds.get(f"{kind} process"), self.seconds.get("beside")
        return None if seconds is None or not beside else JobTime(seconds, int(beside))

    @property
    def collapse(self) -> int | None:
        """The step of the collapse of the reward, if there was one (`study.collapse_step`)."""
        return collapse_step(self.reward)

    def scores(self) -> list[tuple[float, float]]:
        """Tokens that RL had trained and pass@1, before RL and at each evaluation."""
        return [(0.0, self.before), *((math.fsum(self.tokens[: int(step)]), rate) for step, rate in self.evaluations)]

    def summary(self) -> dict[str, Any]:
        """What the choice by a finished study needs of it, with the figures of the tables."""
        start = self.start
        return {
            "seed": self.seed, "epochs": self.epochs, "sft_tokens": start.tokens, "validation_loss": start.loss,
            "validation_entropy": start.entropy, "before": self.before, "best": self.best, "last": self.last,
            "rl_tokens": self.rl_tokens, "ratio": self.ratio, "collapse_step": self.collapse, "seconds": self.seconds,
        }  # fmt: skip


def start_of_runs(
    seed: int, epochs: int, one_run: bool, sft: Path, rl: Path, before: Path, steps: int | None = None
) -> Start:
    """Read what the runs of a start left.

    Args:
        steps: take the RL run's first steps alone, as of one that was cut short (None: all).

    Raises:
        UserError: something is missing: a run directory, the epoch, the evaluations, a metric of some step.
    """
    sft_run, rl_run, evaluation = read_run(sft), read_run(rl), read_evaluation(before)
    if steps is not None:
        if rl_run.metrics[-1]["step"] < steps:
            raise UserError(f"{rl / 'metrics.jsonl'}: has {rl_run.metrics[-1]['step']} steps, below --steps {steps}")
        rl_run = dataclasses.replace(rl_run, metrics=[row for row in rl_run.metrics if row["step"] <= steps])
    ends = [found for found in validations(sft_run) if found.epoch <= epochs]
    if not ends or ends[-1].epoch != epochs:
        raise UserError(f"{sft / 'metrics.jsonl'}: no validation at the end of epoch {epochs}; let SFT finish it")
    rates = [[row["step"], row["evaluation/pass_at_1"]] for row in rl_run.metrics if "evaluation/pass_at_1" in row]
    if not rates or rates[-1][0] != rl_run.metrics[-1]["step"]:
        raise UserError(f"{rl / 'metrics.jsonl'}: no held-out evaluation after the last step; run RL to its end")
    return Start(
        seed=seed,
        epochs=epochs,
        one_run=one_run,
        validation=[[end.epoch, end.tokens, end.loss, end.entropy] for end in ends],
        before=number(evaluation.result, "pass_at_1"),
        evaluations=rates,
        reward=_series(rl_run, "reward/mean"),
        entropy=_series(rl_run, "entropy"),
        tokens=_series(rl_run, "tokens/trained"),
        problems=int(evaluation.result["problems"]),
        settings={name: value for name, value in rl_run.config.items() if not name.startswith(_OWN)},
        seconds={"sft": _seconds(sft_run, ends[-1].step), "rl": _seconds(rl_run, rl_run.metrics[-1]["step"]),
                 **_process_seconds({"sft": sft, "before": before, "rl": rl})},
    )  # fmt: skip


def _series(run: Run, key: str) -> list[float]:
    values = [number(row, key) for row in run.metrics]
    if not all(map(math.isfinite, values)):
        raise UserError(f"{run.path / 'metrics.jsonl'}: {key} is missing or not finite in some step")
    return values


def _seconds(run: Run, last: int) -> float:
    return math.fsum(number(row, "time/step") for row in run.metrics if row["step"] <= last)


def _process_seconds(folders: Mapping[str, Path]) -> dict[str, float]:
    times = {kind: time for kind, folder in folders.items() if (time := job_time(folder)) is not None}
    beside = {"beside": float(max(time.beside for time in times.values()))} if times else {}
    return {f"{kind} process": time.seconds for kind, time in times.items()} | beside


def write_start(start: Start, path: Path) -> None:
    """Write it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"form": FORM, **dataclasses.asdict(start)}) + "\n", encoding="utf-8")
    partial.replace(path)


def read_start(path: Path) -> Start:
    """What `write_start` wrote. Raises UserError for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not the result of a start ({error}); write it again") from None
    names = [field.name for field in dataclasses.fields(Start)]
    if not isinstance(value, dict) or value.get("form") != FORM or not set(names) <= set(value):
        raise UserError(f"{path}: not the result of a start in the form {FORM}; write it again with tools/study.py epochs")
    start = Start(**{name: value[name] for name in names})
    lists = {name: getattr(start, name) for name in ("reward", "entropy", "tokens")}
    numbers = [start.before, *(x for row in (*start.validation, *start.evaluations) for x in row)]
    numbers += [x for values in lists.values() for x in values]
    if not all(is_number(x) and math.isfinite(x) for x in numbers) or not (start.validation and start.evaluations):
        raise UserError(f"{path}: holds values that are no finite numbers, or no evaluation; write it again")
    if len({len(values) for values in lists.values()}) != 1:
        raise UserError(f"{path}: its steps have different metrics; write it again")
    return start


def read_starts(folders: Sequence[Path]) -> list[Start]:
    """All starts in `results/` of these folders, by seed and epochs. A start may lie in several folders.

    Raises:
        UserError: a folder without results, two different results of one start, or starts of different settings.
    """
    found: dict[tuple[int, int], tuple[Start, Path]] = {}
    for folder in folders:
        paths = sorted((folder / RESULTS).glob("*.json"))
        if not paths:
            raise UserError(f"{folder / RESULTS}: no result of a start; run `tools/study.py epochs --out {folder}` first")
        for path in paths:
            start = read_start(path)
            other, where = found.setdefault((start.seed, start.epochs), (start, path))
            if other != start:
                raise UserError(f"{where} and {path}: two results of seed {start.seed}, epochs {start.epochs}; keep one")
    (first, where), *others = found.values()
    for start, path in others:
        _check_alike(first, where, start, path)
    return [start for _, (start, _) in sorted(found.items())]


def _check_alike(first: Start, where: Path, start: Start, path: Path) -> None:
    names = sorted(set(first.settings) | set(start.settings))
    differing = [name for name in names if first.settings.get(name) != start.settings.get(name)]
    differing += ["--one-run"] if first.one_run != start.one_run else []
    differing += ["the number of held-out problems"] if first.problems != start.problems else []
    differing += ["the number of steps"] if len(first.reward) != len(start.reward) else []
    if differing:
        raise UserError(f"{where} and {path}: runs of different settings ({', '.join(differing[:4])}); gather one study")


def by_seed(starts: Iterable[Start]) -> dict[int, list[Start]]:
    """Starts by seed, in the order of their epochs.

    Raises:
        UserError: a seed lacks a start that another has; names what is missing. Or there are more than `MAX_SEEDS`.
    """
    groups: dict[int, list[Start]] = {}
    for start in sorted(starts, key=lambda start: (start.seed, start.epochs)):
        groups.setdefault(start.seed, []).append(start)
    if len(groups) > MAX_SEEDS:
        raise UserError(f"results of {len(groups)} seeds: at most {MAX_SEEDS} are compared")
    counts = sorted({start.epochs for group in groups.values() for start in group})
    for seed, group in groups.items():
        missing = [str(count) for count in counts if count not in {start.epochs for start in group}]
        if missing:
            raise UserError(
                f"seed {seed}: no result of {', '.join(missing)} epoch(s), which other seeds have; run what is missing"
            )
    return groups


def whole_part(starts: Sequence[Start]) -> list[Start]:
    """The largest part of the starts without holes: some seeds, and of each the same numbers of epochs. Of parts of one size
    that with more seeds."""
    by_count: dict[int, set[int]] = {}
    for start in starts:
        by_count.setdefault(start.epochs, set()).add(start.seed)
    counts = sorted(by_count)
    parts = [
        (seeds, some)
        for size in range(1, len(counts) + 1)
        for some in itertools.combinations(counts, size)
        if (seeds := set.intersection(*(by_count[count] for count in some)))
    ]
    seeds, some = max(parts, key=lambda part: (len(part[0]) * len(part[1]), len(part[0])))
    return [start for start in starts if start.seed in seeds and start.epochs in some]


def mean_points(groups: dict[int, list[Start]]) -> dict[int, list[tuple[float, float]]]:
    """For each number of epochs a point before RL and at each evaluation: SFT + RL tokens so far and pass@1, means over
    seeds."""
    points: dict[int, list[tuple[float, float]]] = {}
    for count in [start.epochs for start in next(iter(groups.values()))]:
        starts = [start for group in groups.values() for start in group if start.epochs == count]
        curves = [[(start.start.tokens + tokens, rate) for tokens, rate in start.scores()] for start in starts]
        at = zip(*curves, strict=True)
        points[count] = [(fmean(tokens for tokens, _ in seeds), fmean(rate for _, rate in seeds)) for seeds in at]
    return points


def pareto(points: Iterable[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """Of points (epochs, tokens, score) those that no other beats with as few tokens or fewer, by tokens."""
    front: list[tuple[int, float, float]] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    return front
