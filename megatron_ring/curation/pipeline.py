"""A recipe from its sources to its results. Each step has a folder of shards, named by a hash of everything that its output
depends on: what is there already is not done again, and a run that was killed goes on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ring.curation import benchmarks, grouping
from megatron_ring.curation.annotate import Annotator
from megatron_ring.curation.clean import Cleaner
from megatron_ring.curation.decontaminate import Decontaminator
from megatron_ring.curation.exact import ExactDuplicates
from megatron_ring.curation.judged_subjects import SubjectJudge, judge_identity
from megatron_ring.curation.near import NearDuplicates
from megatron_ring.curation.options import (
    Annotate,
    Clean,
    Decontaminate,
    Exact,
    JudgeSubject,
    Near,
    Options,
    PerProblem,
    Responses,
    Solutions,
    Verify,
)
from megatron_ring.curation.reading import content_digest, open_source, read_piece
from megatron_ring.curation.recipe import Recipe
from megatron_ring.curation.report import write_report
from megatron_ring.curation.responses import ResponseFilter
from megatron_ring.curation.selection import SomePerProblem
from megatron_ring.curation.solutions import SolutionRunner
from megatron_ring.curation.store import Row, Shard, ShardWriter, Tally, read_lines, remove_temporary
from megatron_ring.curation.verify import ResponseVerifier
from megatron_ring.curation.workers import Call, Workers
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError
from megatron_ring.run.lock import take_lock
from megatron_ring.run.progress import Progress

WORK = "work"
REPLIES = "replies"
_ROOMS = ("curation", "data", "judging", "rewards")  # whose code decides what comes out


@dataclass(frozen=True)
class Step:
    """What a step did.

    Attributes:
        name: `read`, or the step's.
        shards: its output.
        tally: its counts.
        seconds: that it took now; None where all was there.
    """

    name: str
    shards: tuple[Shard, ...]
    tally: Tally
    seconds: float | None


def run_recipe(recipe: Recipe, out: Path, processes: int, say: Callable[[str], None] = print) -> list[Step]:
    """Do all steps and write `kept.jsonl`, `dropped.jsonl`, `ledger.jsonl`, `summary.json` and `report.html` into `out`.

    Raises:
        UserError: names file and line of what cannot be read, or the option that cannot work.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file: give a folder")
    (out / WORK).mkdir(parents=True, exist_ok=True)
    with take_lock(out, "--out"), Workers(processes) as workers:
        runner = _Runner(out / WORK, workers, processes, say)
        steps = [runner.read(recipe)]
        for number, options in enumerate(recipe.steps, start=1):
            steps.append(runner.step(number, options, steps[-1].shards))
        _write_results(out, steps, workers)
        runner.remove_others()
    return steps


class _Runner:
    """Runs steps in the folder of their shards."""

    def __init__(self, work: Path, workers: Workers, processes: int, say: Callable[[str], None]) -> None:
        self._work, self._workers, self._processes, self._say = work, workers, processes, say
        self._key = code_digest()
        self._used: set[Path] = set()

    def read(self, recipe: Recipe) -> Step:
        files, pieces = [], []
        for source in recipe.sources:
            found, parts = open_source(source, self._work / "unpacked")
            files += found
            pieces += parts
        self._used.add(self._work / "unpacked")
        described = [
            [file.path.name, file.digest, file.form, file.number, file.source.name, dict(file.source.fields),
             file.source.domain,
             dict(file.source.metadata), file.source.response, len(file.source.files)]
            for file in files
        ]  # fmt: skip
        folder = self._folder(0, "read", [described, [piece.start for piece in pieces]])
        shards = tuple(Shard(folder, number) for number in range(len(pieces)))
        calls = [(read_piece, (piece, shard)) for piece, shard in zip(pieces, shards, strict=True) if not shard.done]
        step = self._finished("read", shards, calls)
        for source in recipe.sources:
            if not step.tally.kept[source.name]:
                reasons = step.tally.reasons()
                sample = next((given[0][1] for given in step.tally.samples.values() if given), "no rows")
                raise UserError(f"source {source.name}: none of its rows can be read, {dict(reasons)}; the first: {sample}")
        return step

    def step(self, number: int, options: Options, given: Sequence[Shard]) -> Step:
        folder = self._folder(number, options.name, _described(options))
        shards = tuple(Shard(folder, shard.number) for shard in given)
        pairs = [(before, shard) for before, shard in zip(given, shards, strict=True) if not shard.done]
        if pairs and isinstance(options, Exact | Near | PerProblem):
            self._group(options, given, shards, folder)
        if pairs and isinstance(options, Decontaminate) and not (folder / "items.json").exists():
            benchmarks.build(options, self._work / "unpacked").save(folder)
        if isinstance(options, Exact | Near | PerProblem):
            calls: list[Call] = [(grouping.filter_shard, (options.name, before, shard)) for before, shard in pairs]
        elif isinstance(options, Solutions | Verify | JudgeSubject):
            return self._scored(options, pairs, shards)
        else:
            calls = [(row_shard, (options, folder, before, shard)) for before, shard in pairs]
        return self._finished(options.name, shards, calls)

    def _group(self, options: Options, given: Sequence[Shard], shards: Sequence[Shard], folder: Path) -> None:
        pairs = zip(given, shards, strict=True)
        calls = [(sign_shard, (options, before, shard)) for before, shard in pairs if not grouping.is_signed(shard)]
        self._run(f"{options.name}: signatures", calls, len(shards))
        if not (folder / "decided").exists():
            run = functools.partial(self._workers.run, on_done=lambda: None)
            grouping.decide(_grouping(options), given, folder, run)

    def _scored(self, options: Options, pairs: list[tuple[Shard, Shard]], shards: tuple[Shard, ...]) -> Step:
        """A step that asks others, who work side by side: verifiers, or a judge."""
        started = time.monotonic()
        with (
            _scorer(options, self._processes, self._work / REPLIES) as scorer,
            Progress(options.name, len(shards), len(shards) - len(pairs), unit="shard") as progress,
        ):
            for before, shard in pairs:
                writer = ShardWriter(shard, options.name)
                scorer.run([json.loads(line) for line in read_lines(before.kept)], writer)
                writer.finish()
                progress.advance(1)
        return self._told(options.name, shards, time.monotonic() - started if pairs else None)

    def _folder(self, number: int, name: str, depends: Any) -> Path:
        text = json.dumps([self._key, name, depends], sort_keys=True, default=str)
        self._key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        folder = self._work / f"{number:02d}-{name}-{self._key[:12]}"
        folder.mkdir(exist_ok=True)
        remove_temporary(folder)
        self._used.add(folder)
        return folder

    def _run(self, title: str, calls: Sequence[Call], total: int) -> None:
        with Progress(title, total, total - len(calls), unit="shard") as progress:
            self._workers.run(calls, lambda: progress.advance(1))

    def _finished(self, name: str, shards: tuple[Shard, ...], calls: Sequence[Call]) -> Step:
        started = time.monotonic()
        self._run(name, calls, len(shards))
        return self._told(name, shards, time.monotonic() - started if calls else None)

    def _told(self, name: str, shards: tuple[Shard, ...], seconds: float | None) -> Step:
        tally = Tally()
        for shard in shards:
            found = shard.tally()
            if found is None:
                raise UserError(f"{shard.folder}: shard {shard.number} is not whole: run the same command again")
            tally.add(found)
        read, kept = tally.read.total(), tally.kept.total()
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.reasons().most_common(5))
        more = " …" if len(tally.reasons()) > 5 else ""
        took = "done before" if seconds is None else f"{seconds:.1f} s"
        dropped = f", {read - kept:,} dropped ({reasons}{more})" if read > kept else ""
        self._say(f"{name}: {read:,} read, {kept:,} kept{dropped}, {took}")
        return Step(name, shards, tally, seconds)

    def remove_others(self) -> None:
        """Take away what earlier recipes have left."""
        for path in self._work.iterdir():
            if path.is_dir() and path.name != REPLIES and path not in self._used:
                shutil.rmtree(path)


@functools.cache
def code_digest() -> str:
    """Of the code of the rooms that decide what comes out."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.blake2b(digest_size=16)
    for room in _ROOMS:
        for path in sorted(path for kind in ("*.py", "*.txt") for path in (package / room).rglob(kind)):
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _described(options: Options) -> dict[str, Any]:
    """Options as plain values, files by their content."""
    if isinstance(options, JudgeSubject):
        return {"ask": options.ask, **judge_identity(options)}
    found = {}
    for each in dataclasses.fields(options):
        value = getattr(options, each.name)
        if isinstance(value, Path):
            value = content_digest(value / "tokenizer.json" if value.is_dir() else value)
        elif isinstance(value, tuple) and any(isinstance(item, Path) for item in value):
            value = [[item.name, content_digest(item)] for item in value]
        found[each.name] = value
    return found


@functools.lru_cache(maxsize=2)
def _row_step(options: Options, folder: Path) -> Callable[[Row, ShardWriter], Row | None]:
    if isinstance(options, Clean):
        return Cleaner(options)
    if isinstance(options, Decontaminate):
        return Decontaminator(options, folder)
    if isinstance(options, Responses):
        return ResponseFilter(options)
    assert isinstance(options, Annotate)
    return Annotator(options)


@functools.lru_cache(maxsize=2)
def _grouping(options: Options) -> grouping.Grouping:
    if isinstance(options, Exact):
        return ExactDuplicates(options)
    if isinstance(options, PerProblem):
        return SomePerProblem(options)
    assert isinstance(options, Near)
    return NearDuplicates(options)


def _scorer(options: Options, workers: int, replies: Path) -> SolutionRunner | ResponseVerifier | SubjectJudge:
    if isinstance(options, JudgeSubject):
        return SubjectJudge(options, replies)
    if isinstance(options, Solutions):
        return SolutionRunner(options, workers)
    assert isinstance(options, Verify)
    return ResponseVerifier(options, workers)


def row_shard(options: Options, folder: Path, given: Shard, taken: Shard) -> None:
    """A step that looks at one row at a time, for one shard."""
    step, writer = _row_step(options, folder), ShardWriter(taken, options.name)
    for line in read_lines(given.kept):
        row = step(json.loads(line), writer)
        if row is not None:
            writer.keep(row)
    writer.finish()


def sign_shard(options: Options, given: Shard, taken: Shard) -> None:
    """The signatures of one shard."""
    grouping.sign_shard(_grouping(options), given, taken)


def _write_results(out: Path, steps: Sequence[Step], workers: Workers) -> None:
    """The files of a run; each appears whole or not at all, `summary.json` last."""
    write_atomically(out / "kept.jsonl", _joined(steps[-1].shards, "kept.jsonl"))
    for name in ("dropped.jsonl", "ledger.jsonl"):
        write_atomically(out / name, (part for step in steps for part in _joined(step.shards, name)))
    write_report(out / "report.html", [(step.name, step.tally) for step in steps], steps[-1].shards, workers)
    summary = {
        "read": steps[0].tally.read.total(),
        "kept": steps[-1].tally.kept.total(),
        "dropped": sum(step.tally.dropped.total() for step in steps),
        "steps": [
            {"step": step.name, "read": step.tally.read.total(), "kept": step.tally.kept.total(),
             "dropped": dict(sorted(step.tally.reasons().items())), "changed": dict(sorted(step.tally.changed.items()))}
            for step in steps
        ],
    }  # fmt: skip
    write_atomically(out / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())


def _joined(shards: Sequence[Shard], kind: str) -> Iterator[bytes]:
    for shard in shards:
        yield shard.file(kind).read_bytes()
