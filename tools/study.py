#!/usr/bin/env python
"""Run a study, several settings under several seeds, and write its tables and figures.

    python tools/study.py c3po --out runs/study-c3po --docs docs

What has finished is not run again; a killed study continues with the same command.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from megatron_ring.analysis.spread import MAX_SEEDS
from megatron_ring.analysis.study_page import write_page
from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.errors import run_main

if TYPE_CHECKING or __package__:
    from tools import study_c3po, study_stages
    from tools.study_jobs import is_finished, run_jobs
else:
    import study_c3po
    import study_stages
    from study_jobs import is_finished, run_jobs


@dataclass(frozen=True)
class Flags:
    """A study by name: its runs, tables and figures."""

    name: Annotated[Literal["c3po", "stages"], tyro.conf.Positional]
    """c3po: C3PO against GRPO, and from an over-trained start; stages: math then code and units, against all at once."""
    out: Path
    """Folder of all runs, a gigabyte or so."""
    docs: Path | None = None
    """Write the tables into study-NAME.md, figures and numbers beside it (default: print the tables)."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of data, weights and sampling."""
    beside: int = 2
    """Processes at a time, one thread each."""
    quick: bool = False
    """A few steps of everything, to see that it works."""
    only: str | None = None
    """Run only the jobs whose name holds this text, and what they need; no tables."""
    dry_run: bool = False
    """List the jobs, and which have finished, and run nothing."""

    def __post_init__(self) -> None:
        require(len(set(self.seeds)) == len(self.seeds), f"--seeds {self.seeds}: name each once")
        require(2 <= len(self.seeds) <= MAX_SEEDS, f"--seeds: give 2 to {MAX_SEEDS}, or there is no spread to compare with")
        require(self.beside >= 1, f"--beside is {self.beside}, below 1")


def main(flags: Flags) -> None:
    study = {"c3po": study_c3po, "stages": study_stages}[flags.name]
    sizes = study.QUICK if flags.quick else study.FULL
    jobs = study.jobs(flags.out, list(flags.seeds), sizes)
    if flags.only is not None:
        wanted = {job.name for job in jobs if flags.only in job.name}
        require(bool(wanted), f"--only {flags.only}: no job of that name")
        for job in reversed(jobs):
            wanted |= set(job.needs) if job.name in wanted else set()
        jobs = [job for job in jobs if job.name in wanted]
    if flags.dry_run:
        for job in jobs:
            print(f"{'finished' if is_finished(job, flags.out) else 'missing':<9}{job.name}\n    {job.text()}")
        return
    run_jobs(jobs, flags.out, flags.beside)
    if flags.only is None:
        tables, figures, numbers = study.page(flags.out, flags.seeds)
        if flags.docs is None:
            print("\n".join(f"## {name}\n\n{table}" for name, table in tables.items()))
        else:
            write_page(flags.docs, f"study-{flags.name}", tables, figures, numbers)


if __name__ == "__main__":
    run_main(lambda: main(parse(Flags, "study.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
