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
    """How much of everything. `counts`: epochs of SFT, in the order in which they are run; `one_run`: checkpoints of one SFT
    run instead of a run each."""

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    one_run: bool = False
    answers: int = 4
    repeated: int = 0
    steps: int = 300


FULL = Sizes()
QUICK = Sizes(train=200, validation=40, rl=60, heldout=20, counts=(1, 2), steps=3, every=2, answers=1, prompts=4, samples=4,
              budget=200, new_tokens=30)  # fmt: skip
# A start, its RL included, within 10 minutes.
GPU = replace(FULL, train=4_000, rl=4_000, heldout=400, counts=(1, 3, 8), answers=2, steps=60, prompts=32, budget=20_480,
              new_tokens=256)  # fmt: skip


def jobs(out: Path, seeds: Sequence[int], sizes: Sizes) -> list[Job]:
    """All jobs. On a CPU seed by seed. On a GPU one number of epochs after the other, all seeds of each: a study that is
    broken off then has whole columns."""
    result = {seed: [common.data_job(f"seed-{seed}/data", seed, sizes, out)] for seed in seeds}
    if sizes.one_run:
        for seed in seeds:
            result[seed].append(_sft(out, seed, "sft", max(sizes.counts), sizes))
    starts = {(seed, epochs): _epochs_jobs(out, seed, sizes, epochs) for epochs in sizes.counts for seed in seeds}
    if sizes.edition.start is not None:
        return [job for each in (*result.values(), *starts.values()) for job in each]
    return [job for seed in seeds for each in (result[seed], *(starts[seed, e] for e in sizes.counts)) for job in each]


def _epochs_jobs(out: Path, seed: int, sizes: Sizes, epochs: int) -> list[Job]:
    """SFT of so many epochs, unless one run has them all, and what begins there."""
    if sizes.one_run:
        return _start_jobs(out, seed, sizes, epochs, Checkpoint(out / f"seed-{seed}/sft", epochs), f"seed-{seed}/sft")
    run = _sft(out, seed, f"sft-{epochs}", epochs, sizes)
    # Checkpoints of a GPU's model take longer than its epochs.
    seldom = ("--save-epochs", str(epochs)) if sizes.edition.start is not None else ()
    run = replace(run, command=(*run.command, "--keep-last", "1", *seldom))
    return [run, *_start_jobs(out, seed, sizes, epochs, Checkpoint(out / run.name), run.name)]


def _sft(out: Path, seed: int, kind: str, epochs: int, sizes: Sizes) -> Job:
    at, root = f"seed-{seed}", out / f"seed-{seed}"
    return common.sft_job(
        f"{at}/{kind}", seed, root / "data", root / kind, epochs, "sft_train.jsonl", sizes, (f"{at}/data",)
    )


def _start_jobs(out: Path, seed: int, sizes: Sizes, epochs: int, start: Checkpoint, needs: str) -> list[Job]:
    """From one start: evaluation before RL, RL, and its result."""
    at, data = f"seed-{seed}", out / f"seed-{seed}" / "data"
    before, rl, result = (f"{at}/{kind}-{epochs}" for kind in ("before", "rl", "result"))
    seldom = ("--save-every", str(sizes.steps)) if sizes.edition.start is not None else ()
    file = out / RESULTS / f"seed-{seed}-epochs-{epochs}.json"
    gathered = ("tools/study_result.py", "--seed", str(seed), "--epochs", str(epochs), "--sft", str(start.run), "--rl",
                str(out / rl), "--before", str(out / before), "--out", str(file),
                *(("--one-run",) if sizes.one_run else ()))  # fmt: skip
    return [
        common.evaluation_job(before, seed, data, start, sizes, out, (needs,)),
        common.rl_job(rl, seed, data, out / rl, start, sizes, sizes.steps, sizes.prompts, (needs,), "--objective.name",
                      "c3po", *sizes.budget_flags, *common.calm(sizes), *common.evaluated(data, sizes), *seldom),
        Job(result, gathered, (before, rl)),
    ]  # fmt: skip
