"""The study of two stages against one: math first, then code and units, against all three from the start, with the same
data, steps and trained tokens. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.analysis.study_stages import page
from megatron_ring.config.checks import require

if TYPE_CHECKING or __package__:
    from tools import study_c3po as common
    from tools.study_jobs import Checkpoint, Job
else:
    import study_c3po as common
    from study_jobs import Checkpoint, Job

__all__ = ["FULL", "GPU", "QUICK", "jobs", "page"]

FULL = replace(common.FULL, train=6000, validation=250, rl=1750, heldout=750, repeated=0)
QUICK = replace(common.QUICK, train=250, validation=50, rl=100, heldout=25, repeated=0, steps=5, budget=150)
GPU = replace(common.GPU, repeated=0)


def jobs(out: Path, seeds: list[int], sizes: common.Sizes) -> list[Job]:
    """All jobs, seed by seed."""
    return [job for seed in seeds for job in _seed_jobs(out, seed, sizes)]


def math_steps(sizes: common.Sizes) -> int:
    """Steps of the first stage: as large a part as its problems have of all. Raises UserError where one stage has none."""
    share = sizes.edition.math_share
    require(0 < share < 1, f"--pool {sizes.edition.pool}: the problems that RL trains on are all of one stage")
    return min(max(1, round(sizes.steps * share)), sizes.steps - 1)


def _seed_jobs(out: Path, seed: int, sizes: common.Sizes) -> list[Job]:
    at = f"seed-{seed}"
    root, data = out / at, out / at / "data"
    tuned = sizes.edition.tuned
    start, ready = (Checkpoint(root / "sft"), "sft") if tuned is None else (str(tuned), "data")
    first, second = Checkpoint(root / "math"), Checkpoint(root / "applied")
    # A constant rate: a decay would favour whichever comes last. One KL weight; each run's reference is its own start.
    rl = ("--objective.name", "c3po", *sizes.budget_flags, "--objective.kl-beta", sizes.edition.kl, "--optimizer.lr",
          sizes.edition.rate)  # fmt: skip
    stages = (math_steps(sizes), sizes.steps - math_steps(sizes))

    def evaluation(name: str, checkpoint: Checkpoint | str, needs: str) -> Job:
        return common.evaluation_job(f"{at}/{name}", seed, data, checkpoint, sizes, out, (f"{at}/{needs}",))

    def train(name: str, origin: Checkpoint | str, steps: int, needs: str, file: str) -> Job:
        return common.rl_job(f"{at}/{name}", seed, data, root / name, origin, sizes, steps, sizes.prompts,
                             (f"{at}/{needs}",), *rl, file=file)  # fmt: skip

    sft = common.sft_job(f"{at}/sft", seed, data, root / "sft", sizes.epochs, "sft_train.jsonl", sizes, (f"{at}/data",))
    return [
        common.data_job(f"{at}/data", seed, sizes, out, *sizes.edition.parts),
        *([sft] if tuned is None else []),
        evaluation("before", start, ready),
        train("math", start, stages[0], ready, "rl_prompts_math.jsonl"),
        train("mix", start, sizes.steps, ready, "rl_prompts.jsonl"),
        train("applied", first, stages[1], "math", "rl_prompts_applied.jsonl"),
        evaluation("math-after", first, "math"),
        evaluation("applied-after", second, "applied"),
        evaluation("mix-after", Checkpoint(root / "mix"), "mix"),
    ]  # fmt: skip
