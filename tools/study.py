#!/usr/bin/env python
"""Run a study, several settings under several seeds, and write its tables and figures.

    python tools/study.py c3po --out runs/study-c3po --docs docs
    python tools/study.py fp8 --out runs/study-c3po          # in the same folder: C3PO's runs are there already

What has finished is not run again; a killed study continues with the same command. The studies of epochs, of FP8 and of the
stages can be run piece by piece, on several machines, and gathered:

    python tools/study.py epochs --out runs/study-epochs --seeds 1            # one machine: seed 1
    python tools/study.py fp8 --out runs/study-c3po --only seed-1/            # the same, of the others
    python tools/study.py epochs --out A --gather B C --docs docs             # later: the page of all results
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from megatron_ring.analysis.spread import MAX_SEEDS
from megatron_ring.analysis.study_page import figure_link, write_page
from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.data.files import read_prompts
from megatron_ring.data.schedule import solve_rate
from megatron_ring.errors import UserError, run_main

if TYPE_CHECKING or __package__:
    from tools import study_c3po, study_epochs, study_fp8, study_general, study_stages
    from tools.study_edition import Edition
    from tools.study_jobs import Job, Manner, is_finished, run_jobs
else:
    import study_c3po
    import study_epochs
    import study_fp8
    import study_general
    import study_stages
    from study_edition import Edition
    from study_jobs import Job, Manner, is_finished, run_jobs


Page = tuple[dict[str, str], dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Flags:
    """A study by name: its runs, tables and figures."""

    name: Annotated[Literal["c3po", "fp8", "stages", "epochs", "general"], tyro.conf.Positional]
    """c3po: C3PO against GRPO, and from an over-trained start; fp8: C3PO that samples with experts in FP8, with and
    without a correction, against its own weights; stages: math then code and units, against all at once; epochs: the same
    C3PO run after few and after many epochs of SFT; general: general RL with a replay share of reasoning and without."""
    out: Path
    """Folder of all runs, a gigabyte or so."""
    docs: Path | None = None
    """Write the tables into study-NAME.md, figures and numbers beside it (default: print the tables)."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of data, weights and sampling."""
    start: Path | None = None
    """A pretrained start for one GPU, as tools/upcycle.py writes it: problems of reasoning-gym with worked solutions, and
    sizes for a GPU (default: ring-tiny from random weights, for a CPU)."""
    pool: Path | None = None
    """Problems that each seed draws its data from, with their solve rates, as tools/choose_tasks.py writes them (default:
    fresh ones for each seed; needs reasoning-gym). RL leaves out problems with a rate below 0.1 or above 0.9."""
    tuned: Path | None = None
    """c3po, fp8, stages: a checkpoint of --start after SFT, where RL of all seeds begins (default: an SFT run of each
    seed)."""
    settings: tuple[str, ...] = ()
    """c3po, fp8: run and compare only these settings, such as c3po grpo, or bf16 fp8 (default: all)."""
    beside: int = 2
    """Processes at a time, one thread each."""
    keep_going: bool = False
    """A job that fails does not end the others."""
    job_minutes: float | None = None
    """A job that takes longer is ended and has failed (default: none is)."""
    tidy: bool = False
    """Remove checkpoints that no other job of the study needs any more. c3po and fp8 in one folder want --tuned with it, as
    either would remove what the other begins with."""
    quick: bool = False
    """A few steps of everything, to see that it works."""
    only: str | None = None
    """Run only the job of this name, or else the jobs whose name holds this text, and what they need; no tables."""
    dry_run: bool = False
    """List the jobs, and which have finished, and run nothing."""
    epochs: tuple[int, ...] | None = None
    """epochs: numbers of epochs of SFT, an SFT run each, in the order in which they are to be run (default: 1 2 4 8 16, with
    --start 1 3 8)."""
    one_run: bool = False
    """epochs: take the checkpoints of one SFT run of the most epochs instead. Cheaper; the learning rate of its early
    checkpoints has not come down."""
    every: int | None = None
    """epochs: steps of RL between held-out evaluations (default: 20)."""
    gather: tuple[Path, ...] | None = None
    """epochs; fp8; stages; c3po with --settings: run nothing; tables and figures of all results in --out and these folders.
    Without folders: in --out."""
    partial: bool = False
    """With --gather: where results are missing, make the page of the largest part without holes, and say so on it."""
    tasks: Path | None = None
    """tasks.json of tools/choose_tasks.py: the solve rates go on the page, as the table `tasks`."""
    page: str | None = None
    """Name of the page (default: study-NAME). Figures and numbers go by it as well."""

    def __post_init__(self) -> None:
        for flag in ("epochs", "one_run", "every"):
            given = getattr(self, flag) not in (None, False)
            require(not given or self.name == "epochs", f"--{flag.replace('_', '-')} belongs to the study of epochs")
        gathers = self.name in ("epochs", "fp8", "stages") or (self.name == "c3po" and bool(self.settings))
        known = "--gather belongs to the study of epochs, to fp8, to stages, or to c3po with --settings"
        require(self.gather is None or gathers, known)
        require(not self.partial or self.gather is not None, "--partial belongs to --gather")
        named = self.page is None or (self.page == Path(self.page).name and self.page.isprintable() and self.page[:1] != ".")
        require(named and self.page != "", f"--page {self.page}: give a name without folders")
        counts = self.epochs or (1,)
        require(len(set(counts)) == len(counts) and min(counts) >= 1, f"--epochs {counts}: name each once, 1 or more")
        require(self.epochs is None or len(counts) >= 2, "--epochs: give 2 or more, or there is nothing to compare")
        require(self.every is None or self.every >= 1, f"--every is {self.every}, below 1")
        require(
            self.gather is None or not (self.only or self.dry_run), "--gather runs nothing: leave --only and --dry-run out"
        )
        require(self.start is None or self.name != "general", "--start does not belong to the study of general RL")
        require(len(set(self.seeds)) == len(self.seeds), f"--seeds {self.seeds}: name each once")
        least = 1 if self.name == "epochs" else 2  # a machine may run one seed of what is gathered later
        several = f"--seeds: give {least} to {MAX_SEEDS}, or there is no spread to compare with"
        require(least <= len(self.seeds) <= MAX_SEEDS, several)
        require(self.beside >= 1, f"--beside is {self.beside}, below 1")
        require(self.job_minutes is None or self.job_minutes > 0, f"--job-minutes is {self.job_minutes}, not above 0")
        self._check_edition()

    def _check_edition(self) -> None:
        for flag in ("pool", "tuned"):
            require(getattr(self, flag) is None or self.start is not None, f"--{flag} belongs to a study with --start")
        tunable = self.name in ("c3po", "fp8", "stages")
        require(self.tuned is None or tunable, "--tuned belongs to the studies c3po, fp8 and stages")
        # Timed runs have no held-out evaluation: the page of a part asks for one.
        known = {"c3po": (*study_c3po.STEADY, *study_c3po.COLLAPSE), "fp8": study_fp8.SETTINGS}
        require(not self.settings or self.name in known, "--settings belongs to the studies c3po and fp8")
        for name in self.settings:
            use = known[self.name]
            require(name in use, f"--settings {name}: use some of {', '.join(use)}")
        several = len(set(self.settings)) == len(self.settings) != 1
        require(several, f"--settings {' '.join(self.settings)}: name 2 or more, each once; --only runs a part")


def main(flags: Flags) -> None:
    if flags.gather is not None:
        return write(flags, *gathered(flags, [flags.out, *flags.gather]))
    study = jobs = jobs_of(flags)
    if flags.only is not None:
        named_so = {job.name for job in jobs if flags.only == job.name}
        wanted = named_so or {job.name for job in jobs if flags.only in job.name}
        require(bool(wanted), f"--only {flags.only}: no job of that name")
        for job in reversed(jobs):
            wanted |= set(job.needs) if job.name in wanted else set()
        jobs = [job for job in jobs if job.name in wanted]
    if flags.dry_run:
        print(f"dry run: the study of {flags.name} has {len(jobs)} jobs here, nothing is started")
        for job in jobs:
            print(f"{'finished' if is_finished(job, flags.out) else 'missing':<9}{job.name}\n    {job.text()}")
        return
    seconds = None if flags.job_minutes is None else 60 * flags.job_minutes
    run_jobs(jobs, flags.out, Manner(flags.beside, flags.keep_going, seconds, flags.tidy), study)
    if flags.only is None:
        write(flags, *page_of(flags))


def gathered(flags: Flags, folders: list[Path]) -> Page:
    """Tables, figures and numbers of the results in several folders."""
    if flags.name == "epochs":
        return study_epochs.page(folders, partial=flags.partial)
    seeds = None if flags.partial else flags.seeds
    if flags.name == "fp8":
        return study_fp8.page(folders, seeds, flags.settings)
    if flags.name == "stages":
        return study_stages.page(folders, seeds)
    return study_c3po.steady_page(folders, seeds, flags.settings)


def epoch_sizes(flags: Flags) -> study_epochs.Sizes:
    """How much of everything in the study of epochs."""
    sizes = sizes_of(flags, study_epochs)
    return replace(sizes, counts=flags.epochs or sizes.counts, one_run=flags.one_run, every=flags.every or sizes.every)


def jobs_of(flags: Flags) -> list[Job]:
    """All jobs of the study that was asked for."""
    if flags.name == "epochs":
        return study_epochs.jobs(flags.out, flags.seeds, epoch_sizes(flags))
    if flags.name == "general":
        return study_general.jobs(flags.out, flags.seeds, study_general.QUICK if flags.quick else study_general.FULL)
    if flags.name in ("c3po", "fp8"):
        study = study_c3po if flags.name == "c3po" else study_fp8
        return study.jobs(flags.out, list(flags.seeds), replace(sizes_of(flags, study), settings=flags.settings))
    return study_stages.jobs(flags.out, list(flags.seeds), sizes_of(flags, study_stages))


def sizes_of(flags: Flags, study: Any) -> Any:
    """How much of everything, for the start that was asked for."""
    if flags.start is None:
        return study.QUICK if flags.quick else study.FULL
    require(flags.dry_run or flags.start.is_dir(), f"--start {flags.start}: no such folder")
    for flag, folder in (("pool", flags.pool), ("tuned", flags.tuned)):
        require(folder is None or flags.dry_run or folder.is_dir(), f"--{flag} {folder}: no such folder")
    if flags.pool is not None and (not flags.dry_run or (flags.pool / "rl_prompts.jsonl").is_file()):
        check_pool(flags.pool)
    pool, tuned = (None if folder is None else folder.resolve() for folder in (flags.pool, flags.tuned))
    return replace(study.QUICK if flags.quick else study.GPU, edition=Edition(flags.start.resolve(), pool, tuned))


def check_pool(pool: Path) -> None:
    """Raise UserError unless its RL prompts have solve rates: RL would end for want of them, after SFT."""
    records = read_prompts(pool / "rl_prompts.jsonl")
    rated = bool(records) and solve_rate(records[0]) is not None
    require(rated, f"--pool {pool}: prompts without a solve rate; give what tools/choose_tasks.py wrote")


def page_of(flags: Flags) -> Page:
    """Tables, figures and numbers of the finished study."""
    if flags.name == "epochs":
        return study_epochs.page([flags.out], flags.seeds, epoch_sizes(flags).counts)
    if flags.name in ("fp8", "stages") or flags.settings:
        return gathered(flags, [flags.out])
    return (study_c3po if flags.name == "c3po" else study_general).page(flags.out, flags.seeds)


def write(flags: Flags, tables: dict[str, str], figures: dict[str, Any], numbers: dict[str, Any]) -> None:
    """Into the pages, or the tables alone to stdout."""
    if flags.tasks is not None:
        tables = {**tables, "tasks": tasks_table(flags.tasks)}
    if flags.docs is None:
        shown = {name: table for name, table in tables.items() if not name.startswith("figure ")}
        print("\n".join(f"## {name}\n\n{table}" for name, table in shown.items()))
    else:
        write_page(flags.docs, *named(flags.page or f"study-{flags.name}", flags.name, tables, figures), numbers)


def tasks_table(path: Path) -> str:
    """Solve rate of each task, and which were kept. Raises UserError for another file."""
    try:
        found = json.loads(path.read_bytes())
        rates, kept = {str(task): float(rate) for task, rate in found["solve_rate"].items()}, set(found["kept"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--tasks {path}: not the tasks.json of tools/choose_tasks.py ({error!r})") from None
    lines = [f"| {task} | {rate:.3f} | {'yes' if task in kept else 'no'} |" for task, rate in rates.items()]
    return "\n".join(["| task | solve rate | kept |", "| --- | --- | --- |", *lines]) + "\n"


def named(
    page: str, study: str, tables: dict[str, str], figures: dict[str, Any]
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The page's name, and its tables and figures under that name: two pages of a study may lie in one folder."""
    if page == f"study-{study}":
        return page, tables, figures
    names = {old: f"{page}{old.removeprefix(f'study-{study}')}" for old in figures if old.startswith(f"study-{study}")}
    names |= {old: f"{page}-{old.removeprefix('study-')}" for old in figures if old not in names}
    for old, new in names.items():
        tables = {name: text.replace(figure_link(old), figure_link(new)) for name, text in tables.items()}
    return page, tables, {names[old]: figure for old, figure in figures.items()}


if __name__ == "__main__":
    run_main(lambda: main(parse(Flags, "study.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
