"""The study of SFT epochs: how long to distil before reinforcement. Its jobs: for each number of epochs an SFT run with a
schedule of its own, and the same C3PO run from each. Settings are those of examples/tiny unless said otherwise. Imports no
torch.

A start (seed, epochs) ends with one small file, `results/seed-S-epochs-E.json`. The page is made of these alone, so that the
starts of a study may be run on several machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.analysis.study_epochs import page
from megatron_ring.analysis.study_starts import RESULTS

if TYPE_CHECKING or __package__:
    from tools import study_c3po as common
    from tools.study_jobs import Checkpoint, Job
else:
    import study_c3po as common
    from study_jobs import Checkpoint, Job

__all__ = ["FULL", "GPU", "QUICK", "Sizes", "jobs", "page"]


@dataclass(frozen=True)
class Sizes(common.Sizes):
    """How much of everything. `counts`: epochs of SFT; `one_run`: checkpoints of one SFT run instead of a run each; `every`:
    steps of RL between held-out evaluations; `answers`: responses to each held-out problem."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    one_run: bool = False
    every: int = 20
    answers: int = 4
    repeated: int = 0
    steps: int = 300


FULL = Sizes()
QUICK = Sizes(train=200, validation=40, rl=60, heldout=20, counts=(1, 2), steps=3, every=2, answers=1, prompts=4, samples=4,
              budget=200, new_tokens=30)  # fmt: skip
# A start, its RL included, within 10 minutes.
GPU = replace(FULL, train=12_000, rl=6_000, heldout=400, counts=(1, 2, 4), answers=2, steps=100, prompts=64, budget=81_920,
              new_tokens=384)  # fmt: skip


def jobs(out: Path, seeds: Sequence[int], sizes: Sizes) -> list[Job]:
    """All jobs, seed by seed."""
    return [job for seed in seeds for job in _seed_jobs(out, seed, sizes)]


def _seed_jobs(out: Path, seed: int, sizes: Sizes) -> list[Job]:
    at, root = f"seed-{seed}", out / f"seed-{seed}"
    result = [common.data_job(f"{at}/data", seed, sizes, out)]
    if sizes.one_run:
        result.append(_sft(f"{at}/sft", seed, root, root / "sft", max(sizes.counts), sizes))
    for epochs in sizes.counts:
        name = f"{at}/sft" if sizes.one_run else f"{at}/sft-{epochs}"
        start = Checkpoint(out / name, epochs) if sizes.one_run else Checkpoint(out / name)
        if not sizes.one_run:
            run = _sft(name, seed, root, out / name, epochs, sizes)
            result.append(replace(run, command=(*run.command, "--keep-last", "1")))
        result += _start_jobs(out, seed, sizes, epochs, start, name)
    return result


def _sft(name: str, seed: int, root: Path, run: Path, epochs: int, sizes: Sizes) -> Job:
    return common.sft_job(name, seed, root / "data", run, epochs, "sft_train.jsonl", sizes, (f"seed-{seed}/data",))


def _start_jobs(out: Path, seed: int, sizes: Sizes, epochs: int, start: Checkpoint, needs: str) -> list[Job]:
    """From one start: evaluation before RL, RL, and its result."""
    at, data = f"seed-{seed}", out / f"seed-{seed}" / "data"
    before, rl, result = (f"{at}/{kind}-{epochs}" for kind in ("before", "rl", "result"))
    evaluated = ("--evaluation.prompts", str(data / "heldout.jsonl"), "--evaluation.every", str(sizes.every),
                 "--evaluation.samples-per-problem", str(sizes.answers), "--evaluation.top-p", "1")  # fmt: skip
    first = common.evaluation_job(before, seed, data, start, sizes, out, (needs,))
    file = out / RESULTS / f"seed-{seed}-epochs-{epochs}.json"
    gathered = ("tools/study_result.py", "--seed", str(seed), "--epochs", str(epochs), "--sft", str(start.run), "--rl",
                str(out / rl), "--before", str(out / before), "--out", str(file),
                *(("--one-run",) if sizes.one_run else ()))  # fmt: skip
    return [
        replace(first, command=(*first.command, "--samples-per-problem", str(sizes.answers))),
        common.rl_job(rl, seed, data, out / rl, start, sizes, sizes.steps, sizes.prompts, (needs,), "--objective.name",
                      "c3po", *sizes.budget_flags, *common.calm(sizes), *evaluated),
        Job(result, gathered, (before, rl)),
    ]  # fmt: skip
