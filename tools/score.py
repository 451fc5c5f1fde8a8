"""Score a file of responses: each row {domain, prompt?, response, answer} gains {reward, reason}.

JSON lines, also packed (.gz, .zst), or parquet, by the suffix. Rows come out in order, one for each that went in. A row that
cannot be scored gets reward 0 and says why; where it is not even a JSON object it becomes {error, line, reward, reason}. The
same command goes on where a killed one stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.data.messages import RecordError
from megatron_ring.data.parquet import count_parquet_rows, parquet_rows
from megatron_ring.data.rows import PACKED, open_text_file, parse_line, write_rows
from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards import Reward, RewardPool, Scorer, ScoreRequest
from megatron_ring.rewards.scorer import PendingReward

IN_FLIGHT = 1024  # rows read ahead of the oldest one that is still being scored
FLUSH_SECONDS = 1.0


@dataclass(frozen=True)
class ScoreOptions:
    """Score responses with the verifiers that training uses.

    Attributes:
        input: JSONL (also .gz, .zst) or parquet, one {domain, prompt?, response, answer, length?} a row; length in tokens.
        output: file to write, JSONL or parquet; it appears whole, or not at all.
        workers: verifier processes of each kind that is needed (answers, instructions, code).
        time_limit: seconds per response; past it the reward is 0. Code has limits for each test instead.
        compositions: JSON file of rewards made of several verifiers, by domain (see docs/rewards.md).
        detail: also write `detail`: the parts of a composed reward, the findings for each instruction.
        unsafe_code: run solutions without a sandbox where bubblewrap does not work. For trusted code only.
    """

    input: Path
    output: Path
    workers: int = min(8, os.cpu_count() or 1)
    time_limit: float = 5.0
    compositions: Path | None = None
    detail: bool = False
    unsafe_code: bool = False


class PartialOutput:
    """The rows scored so far, beside the output, with what they were scored from and how: a later run may go on."""

    def __init__(self, options: ScoreOptions) -> None:
        self.path = options.output.with_name(f".{options.output.name}.partial")
        self._origin = self.path.with_name(self.path.name + ".origin")
        self._description = json.dumps(_origin(options), sort_keys=True)

    def open(self) -> tuple[IO[bytes], list[float]]:
        """The file, at its end, and the rewards of the rows that it holds already."""
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise UserError(f"{self.path}: another run is writing it") from None
        rewards: list[float] = []
        end = 0
        if self._origin.is_file() and self._origin.read_text() == self._description:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                rewards.append(json.loads(line)["reward"])
                end += len(line)
        file.seek(end)
        file.truncate()
        self._origin.write_text(self._description)
        return file, rewards

    def rows(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)


def _origin(options: ScoreOptions) -> dict[str, Any]:
    """What the rewards depend on."""
    stat = options.input.stat()
    given = {name: str(value) for name, value in asdict(options).items() if name not in ("workers", "output")}
    composed = None if options.compositions is None else options.compositions.read_text()
    return {**given, "size": stat.st_size, "modified": stat.st_mtime_ns, "composed": composed}


def submit_row(scorer: Scorer, raw: bytes | dict[str, Any], number: int) -> tuple[dict[str, Any], PendingReward | Reward]:
    """The output object of one input row, and its reward or the promise of it."""
    try:
        row = parse_line(raw, surrogates=True) if isinstance(raw, bytes) else raw
    except RecordError as error:
        return unreadable(number, str(error))
    if not isinstance(row, dict):
        return unreadable(number, f"not a JSON object but {type(row).__name__}")
    try:
        return row, scorer.submit(request_of(scorer, row, number))
    except UserError as error:
        return row, Reward(0.0, str(error))


def request_of(scorer: Scorer, row: dict[str, Any], number: int) -> ScoreRequest:
    """Check one row. Raises `UserError` that says what it lacks."""
    for name in ("domain", "response", "answer"):
        if row.get(name) is None:
            raise UserError(f"line {number}: no {name!r}")
    for name in ("domain", "response"):
        if not isinstance(row[name], str):
            raise UserError(f"line {number}: {name!r} must be text, not {type(row[name]).__name__}")
    length = row.get("length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 0):
        raise UserError(f"line {number}: 'length' must be a whole number of tokens, not {length!r:.40}")
    scorer.check(row["domain"])
    return ScoreRequest(row["domain"], row.get("prompt"), row["response"], row["answer"], length)


def unreadable(number: int, problem: str) -> tuple[dict[str, Any], Reward]:
    """The output for a line that holds no object."""
    return {"error": problem, "line": number}, Reward(0.0, f"line {number}: {problem}")


def scored_lines(
    scorer: Scorer, rows: Iterator[tuple[int, bytes | dict[str, Any]]], detail: bool
) -> Iterator[tuple[str, float]]:
    """Output lines in order, each with its reward."""
    waiting: deque[tuple[int, dict[str, Any], PendingReward | Reward]] = deque()
    for number, raw in rows:
        waiting.append((number, *submit_row(scorer, raw, number)))
        if len(waiting) == IN_FLIGHT:
            yield finish(*waiting.popleft(), detail)
    while waiting:
        yield finish(*waiting.popleft(), detail)


def finish(number: int, row: dict[str, Any], pending: PendingReward | Reward, detail: bool) -> tuple[str, float]:
    """Wait for a reward and write its line. A row that turns out not to be one that can be scored has reward 0."""
    try:
        reward = pending if isinstance(pending, Reward) else pending.result()
    except UserError as error:
        reward = Reward(0.0, f"line {number}: {error}")
    given = {"reward": reward.value, "reason": reward.reason, **({"detail": dict(reward.detail)} if detail else {})}
    try:
        line = json.dumps({**row, **given}, allow_nan=False)
    except (ValueError, RecursionError):
        row, reward = unreadable(number, "nests too deeply, or holds a number that JSON cannot")
        line = json.dumps({**row, "reward": reward.value, "reason": reward.reason})
    return line, reward.value


def score_file(options: ScoreOptions) -> None:
    """Score the file and print one line of summary.

    Raises:
        UserError: a path or a limit that cannot work.
    """
    if not options.input.is_file():
        raise UserError(f"--input {options.input}: no such file")
    if not options.output.parent.is_dir() or (options.output.exists() and not options.output.is_file()):
        raise UserError(f"--output {options.output}: give a file in a folder that exists")
    if options.output.suffix.lower() in PACKED:
        raise UserError(f"--output {options.output}: scores are written as .jsonl or .parquet: name it so")
    try:
        pool = RewardPool(options.workers, options.time_limit, unsafe_code=options.unsafe_code)
        with Scorer(pool, options.compositions) as scorer:
            partial = PartialOutput(options)
            summary = write_scores(options, scorer, partial)
            if options.output.suffix == ".parquet":
                write_rows(options.output, list(partial.rows()))
            else:
                os.replace(partial.path, options.output)
            partial.remove()
    except OSError as error:
        raise UserError(f"{error.filename or options.output}: {error.strerror}") from None
    print(f"{summary}, written to {options.output}")


def write_scores(options: ScoreOptions, scorer: Scorer, partial: PartialOutput) -> str:
    """Score what the partial output lacks, with a progress bar on a terminal; returns a summary."""
    started = flushed = time.monotonic()
    file, rewards = partial.open()
    with file:
        if rewards:
            print(f"score: continuing after {len(rewards)} lines", flush=True)
        rows = islice(enumerate(read_rows(options.input), start=1), len(rewards), None)
        columns = (TextColumn("scored"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            total = count_rows(options.input) if console.is_terminal else None
            bar = progress.add_task("", total=total, completed=len(rewards))
            for line, reward in scored_lines(scorer, rows, options.detail):
                file.write(line.encode("ascii") + b"\n")
                rewards.append(reward)
                progress.advance(bar)
                if time.monotonic() - flushed > FLUSH_SECONDS:
                    file.flush()
                    flushed = time.monotonic()
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return f"{len(rewards)} lines, mean reward {mean:.4f}, {time.monotonic() - started:.1f} s"


def read_rows(path: Path) -> Iterator[bytes | dict[str, Any]]:
    """Lines of a JSONL file, also a packed one, rows of a parquet file."""
    if path.suffix == ".parquet":
        yield from parquet_rows(path)
        return
    try:
        with open_text_file(path) as lines:
            yield from lines
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}: check the file") from None


def count_rows(path: Path) -> int:
    """For the progress bar."""
    if path.suffix == ".parquet":
        return count_parquet_rows(path)
    with open_text_file(path) as lines:
        return sum(1 for _ in lines)


def main() -> None:
    """Command line."""
    score_file(tyro.cli(ScoreOptions))


if __name__ == "__main__":
    run_main(main)
