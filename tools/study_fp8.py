"""The study of sampling with experts in FP8: C3PO as in its own study, and again with FP8. Jobs and their folders are those
of that study: in its folder, data, start and the runs without FP8 are not run again. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ring.analysis.study_fp8 import FOLDERS, SETTINGS, page

if TYPE_CHECKING or __package__:
    from tools import study_c3po as common
    from tools.study_jobs import Job
else:
    import study_c3po as common
    from study_jobs import Job

__all__ = ["FULL", "GPU", "QUICK", "SETTINGS", "jobs", "page"]

FULL, GPU, QUICK = common.FULL, common.GPU, common.QUICK


def jobs(out: Path, seeds: list[int], sizes: common.Sizes) -> list[Job]:
    """All jobs, seed by seed; `sizes.settings` are those of the page."""
    names = [FOLDERS.get(name, name) for name in common.asked(SETTINGS, sizes)]
    return [job for seed in seeds for job in common.seed_jobs(out, seed, sizes, names)]
