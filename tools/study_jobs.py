"""Runs the jobs of a study: what is missing, several side by side, each after what it needs. Imports no torch.

A job that has ended well leaves `finished.json` in its folder and is not run again. A killed study continues with the same
command; the jobs' own mains continue from their last checkpoint. Those that save weights alone cannot, and begin anew.
`finished.json` also has the seconds that the job ran, and how many ran beside each other: what the study cost.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ring.analysis.read_run import epoch_checkpoints, read_run
from megatron_ring.analysis.study_cost import MARK
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
GRACE = 20.0  # seconds that a job has for its end
WEIGHTS_ALONE = "--no-save-optimizer"  # such a run cannot continue from its checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of another job's run: the one that was chosen by entropy, the last, or that of an SFT epoch."""

    run: Path
    which: Literal["chosen", "last"] | int = "last"

    def resolve(self) -> str:
        """Its path, once that job has finished."""
        if self.which == "chosen":
            name = json.loads((self.run / "selection.json").read_text())["checkpoint"]
        elif isinstance(self.which, int):
            ends = {epoch.epoch: epoch.checkpoint for epoch in epoch_checkpoints(read_run(self.run))}
            if self.which not in ends:
                raise UserError(f"{self.run / 'metrics.jsonl'}: no checkpoint at the end of epoch {self.which}")
            name = ends[self.which]
        else:
            name = (self.run / "checkpoints" / "latest").read_text().strip()
        return str(self.run / "checkpoints" / name)

    def __str__(self) -> str:
        return f"<{f'epoch {self.which}' if isinstance(self.which, int) else self.which} of {self.run}>"


@dataclass(frozen=True)
class Job:
    """One process. `name` is its folder below the study's, `needs` are names of jobs; `alone`: nothing runs beside it,
    because its times are reported."""

    name: str
    command: tuple[str | Checkpoint, ...]
    needs: tuple[str, ...] = ()
    alone: bool = False

    def arguments(self) -> list[str]:
        first, *rest = (part.resolve() if isinstance(part, Checkpoint) else part for part in self.command)
        return [sys.executable, first if first == "-m" else str(ROOT / first), *rest]

    def text(self) -> str:
        """The command as it would be typed, checkpoints not looked up."""
        return "python " + " ".join(shlex.quote(str(part)) if isinstance(part, str) else str(part) for part in self.command)


def check(jobs: Sequence[Job]) -> None:
    """Raise ValueError unless names are unique and every job comes after what it needs."""
    known: set[str] = set()
    for job in jobs:
        if job.name in known or not known.issuperset(job.needs):
            raise ValueError(f"job {job.name}: named twice, or before one of {job.needs}")
        known.add(job.name)


def is_finished(job: Job, out: Path) -> bool:
    """Whether it ended well with this very command. Raises UserError when it was another one, or nothing says which."""
    mark = out / job.name / MARK
    if not mark.is_file():
        return False
    try:
        command = json.loads(mark.read_bytes())["command"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{mark}: not the mark of a finished job; remove {out / job.name} to run it again") from None
    if command != job.text():
        raise UserError(f"{mark}: the study has changed since; remove {out / job.name} to run it again")
    return True


@dataclass(frozen=True)
class Manner:
    """How the jobs are run.

    Attributes:
        beside: processes at a time.
        keep_going: a job that fails ends neither the others nor the study; what needs it is left out.
        limit: seconds that a job may run; then it is ended, and has failed. None: any.
        tidy: remove the checkpoints of a job once every job that begins with them has finished.
    """

    beside: int = 2
    keep_going: bool = False
    limit: float | None = None
    tidy: bool = False


@dataclass(frozen=True)
class _Running:
    process: subprocess.Popen[bytes]
    began: float


def run_jobs(jobs: Sequence[Job], out: Path, manner: Manner, study: Sequence[Job] = ()) -> None:
    """Run what is not finished, in the order given. When one fails the others are ended, unless the manner is another.

    Args:
        study: all jobs of the study, where `jobs` are a part: what they begin with is not tidied away.

    Raises:
        UserError: a job failed; names its log.
    """
    check(jobs)
    waiting = [job for job in jobs if not is_finished(job, out)]
    finished = {job.name for job in jobs} - {job.name for job in waiting}
    elsewhere = {job.name for job in study if job not in jobs and (out / job.name / MARK).is_file()}
    failed: list[str] = []
    began = time.monotonic()
    running: dict[Job, _Running] = {}
    with _lock(out) as lock, _ended(running):
        while waiting or running:
            for job in list(waiting):
                beside = len(running) < manner.beside and not any(other.alone for other in running)
                if (not running if job.alone else beside) and finished.issuperset(job.needs):
                    waiting.remove(job)
                    running[job] = _Running(_start(job, out, lock), time.monotonic())
            if not running:
                break  # what is left needs a job that failed
            job, problem = _wait_for_one(running, manner.limit)
            seconds = time.monotonic() - running.pop(job).began
            if problem:
                failed.append(f"{job.name}: {problem}, see {_log(job, out)}: {_last_line(_log(job, out))}")
                if not manner.keep_going:
                    raise UserError(failed[0])
                print(f"study: failed: {failed[-1]}", flush=True)
                continue
            mark = {"command": job.text(), "seconds": round(seconds, 1), "beside": manner.beside}
            write_atomically(out / job.name / MARK, (json.dumps(mark) + "\n").encode())
            finished.add(job.name)
            print(f"study: {len(finished)}/{len(jobs)} {job.name} ({time.monotonic() - began:.0f} s)", flush=True)
            if manner.tidy:
                remove_checkpoints(study or jobs, out, finished | elsewhere)
    if failed:
        left = f"; {len(waiting)} jobs were left out" if waiting else ""
        raise UserError(f"{len(failed)} of {len(jobs)} jobs failed{left}; the same command runs them again. {failed[0]}")


def remove_checkpoints(jobs: Sequence[Job], out: Path, finished: Set[str]) -> None:
    """Those of finished jobs that no unfinished job of the study begins with."""
    wanted = {part.run for job in jobs if job.name not in finished for part in job.command if isinstance(part, Checkpoint)}
    for job in jobs:
        if job.name in finished and out / job.name not in wanted:
            shutil.rmtree(out / job.name / "checkpoints", ignore_errors=True)


@contextmanager
def _lock(out: Path) -> Iterator[int]:
    """One study at a time in `out`. Jobs inherit the lock, so one that outlives a killed study still holds it."""
    out.mkdir(parents=True, exist_ok=True)
    file = os.open(out / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    except BlockingIOError:
        raise UserError(f"{out}: a study, or a job that a killed one left, runs there; wait for it or end it") from None
    finally:
        os.close(file)


@contextmanager
def _ended(running: dict[Job, _Running]) -> Iterator[None]:
    """Whatever happens short of SIGKILL, no job is left behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for each in running.values():
            os.killpg(each.process.pid, signal.SIGTERM)  # a session of its own: its verifiers end with it
        for each in running.values():
            each.process.wait()


def _start(job: Job, out: Path, lock: int) -> subprocess.Popen[bytes]:
    if WEIGHTS_ALONE in job.command and (out / job.name).exists():
        shutil.rmtree(out / job.name)
    (out / job.name).mkdir(parents=True, exist_ok=True)
    log = _log(job, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    with log.open("ab") as stream:
        return subprocess.Popen(
            job.arguments(), stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            pass_fds=(lock,),
        )  # fmt: skip


def _wait_for_one(running: dict[Job, _Running], limit: float | None) -> tuple[Job, str]:
    """The first job to end, and what went wrong; "" where nothing did. A job that runs for too long is ended."""
    while True:
        for job, each in running.items():
            status = each.process.poll()
            if status is not None:
                return job, f"exit status {status}" if status else ""
            if limit is not None and time.monotonic() - each.began > limit:
                end(each.process)
                return job, f"ended after {limit:g} seconds, the most that a job may take"
        time.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a job with all that it started: politely, and after `GRACE` seconds at once."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _log(job: Job, out: Path) -> Path:
    return out / "logs" / (job.name.replace("/", "-") + ".log")


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")
