#!/usr/bin/env python
"""Keep of a study's problems the tasks that a model solves sometimes: those whose solve rate lies between two bounds.

    python tools/solve_rate.py --prompts pool/rl_prompts.jsonl --out rated --samples 8 -- --checkpoint CKPT --tokenizer DIR …
    python tools/choose_tasks.py --pool pool --rated rated/kept.jsonl --out chosen

`pool` is what tools/make_worked_gym_data.py wrote. `chosen` gets the same files with the rows of the tasks that are kept;
its RL prompts are the rated ones, so that RL can leave out single problems by `metadata.solve_rate`. `chosen/tasks.json` has
the rate of every task, and which were kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.data.files import PromptRecord, read_prompts, read_sft, write_prompts, write_sft
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main

SFT_FILES = ("sft_train", "sft_validation")


@dataclass(frozen=True, kw_only=True)
class ChooseOptions:
    """Tasks by their solve rate."""

    pool: Path
    """Folder with sft_train, sft_validation and heldout, as tools/make_worked_gym_data.py writes it."""
    rated: Path
    """RL prompts with a task and a solve rate in their metadata, as tools/solve_rate.py writes them."""
    out: Path
    """Folder to write to; made if missing."""
    low: float = 0.1
    """Least mean solve rate of a task that is kept."""
    high: float = 0.7
    """Largest mean solve rate of a task that is kept."""
    least: int = 3
    """Where fewer tasks lie between the bounds, so many are kept all the same: those nearest to the bounds' middle."""

    def __post_init__(self) -> None:
        require(0 <= self.low < self.high <= 1, f"--low {self.low} and --high {self.high}: give 0 <= low < high <= 1")
        require(self.least >= 1, f"--least is {self.least}, below 1")
        same = self.out.resolve() == self.pool.resolve()
        require(not same, f"--out {self.out}: is --pool, whose other rows would be lost, give another folder")


def task_of(record: PromptRecord) -> str:
    """Raises `UserError` for a row that names none."""
    task = record.metadata.get("task")
    if not isinstance(task, str):
        raise UserError(f"{record.place}: no metadata.task: give prompts of tools/make_worked_gym_data.py")
    return task


def rates_by_task(records: Sequence[PromptRecord]) -> dict[str, float]:
    """Mean solve rate of each task. Raises `UserError` for a row without a rate."""
    found: dict[str, list[float]] = {}
    for record in records:
        rate = record.metadata.get("solve_rate")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise UserError(f"{record.place}: no metadata.solve_rate from 0 to 1: give what tools/solve_rate.py wrote")
        found.setdefault(task_of(record), []).append(float(rate))
    return {task: fmean(rates) for task, rates in sorted(found.items())}


def choose(rates: Mapping[str, float], low: float, high: float, least: int) -> list[str]:
    """Tasks between the bounds, by name; with those nearest to the middle where they are fewer than `least`.

    Raises:
        UserError: there are fewer tasks than `least`.
    """
    if len(rates) < least:
        raise UserError(f"--least {least}: the rated problems are of {len(rates)} task(s) only")
    inside = [task for task, rate in rates.items() if low <= rate <= high]
    nearest = sorted(rates, key=lambda task: (abs(rates[task] - (low + high) / 2), task))
    return sorted(inside if len(inside) >= least else nearest[:least])


def main(options: ChooseOptions) -> None:
    rated = read_prompts(options.rated)
    rates = rates_by_task(rated)
    kept = choose(rates, options.low, options.high, options.least)
    options.out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name in SFT_FILES:
        rows = [row for row in read_sft(options.pool / f"{name}.jsonl") if row.source in kept]
        counts[name] = len(rows)
        require(bool(rows), f"{options.pool / name}.jsonl: no row of {', '.join(kept)}; their `source` names the task")
        write_sft(options.out / f"{name}.jsonl", rows)
    prompts = {"rl_prompts": rated, "heldout": read_prompts(options.pool / "heldout.jsonl")}
    for name, records in prompts.items():
        chosen = [record for record in records if task_of(record) in kept]
        counts[name] = len(chosen)
        require(bool(chosen), f"{options.pool / name}.jsonl: no row of {', '.join(kept)}")
        write_prompts(options.out / f"{name}.jsonl", chosen)
    said = {
        "low": options.low,
        "high": options.high,
        "least": options.least,
        "solve_rate": rates,
        "kept": kept,
        "rows": counts,
    }
    write_atomically(options.out / "tasks.json", (json.dumps(said, indent=1) + "\n").encode())
    listed = ", ".join(f"{task} {rate:.2f}{'' if task in kept else ' (left out)'}" for task, rate in rates.items())
    print(f"{options.out}: kept {len(kept)} of {len(rates)} tasks: {listed}")


if __name__ == "__main__":
    run_main(lambda: main(parse(ChooseOptions, "tools/choose_tasks.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
