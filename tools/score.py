"""Score a JSONL file of responses: each line {domain, prompt?, response, answer} gains {reward, reason}.

Lines come out in order, one for each line that went in. A line that cannot be scored gets reward 0 and says why; where
it is not even a JSON object it becomes {error, line, reward, reason}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards import Reward, RewardPool, ScoreRequest, verifier_for

IN_FLIGHT = 1024  # lines read ahead of the oldest one that is still being scored


@dataclass(frozen=True)
class ScoreOptions:
    """Score responses with the verifiers that training uses.

    Attributes:
        input: JSONL file, one {domain, prompt?, response, answer} a line.
        output: JSONL file to write; it appears whole, or not at all.
        workers: verifier processes.
        time_limit: seconds per response; past it the reward is 0.
    """

    input: Path
    output: Path
    workers: int = min(8, os.cpu_count() or 1)
    time_limit: float = 5.0


def submit_line(pool: RewardPool, line: bytes, number: int) -> tuple[dict[str, Any], Future[Reward] | Reward]:
    """The output object of one input line, and its reward or the promise of it."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: JSON, UTF-8, or an integer of thousands of digits
        detail = str(error).splitlines()[0] if isinstance(error, ValueError) else "nested too deeply"
        return unreadable(number, f"not JSON: {detail}")
    if not isinstance(row, dict):
        return unreadable(number, f"not a JSON object but {type(row).__name__}")
    try:
        for name in ("domain", "response", "answer"):
            if name not in row:
                raise UserError(f"line {number}: no {name!r}")
        for name in ("domain", "response"):
            if not isinstance(row[name], str):
                raise UserError(f"line {number}: {name!r} must be text, not {type(row[name]).__name__}")
        verifier_for(row["domain"])
    except UserError as error:
        return row, Reward(0.0, str(error))
    return row, pool.submit(ScoreRequest(row["domain"], row.get("prompt"), row["response"], row["answer"]))


def unreadable(number: int, problem: str) -> tuple[dict[str, Any], Reward]:
    """The output for a line that holds no object."""
    return {"error": problem, "line": number}, Reward(0.0, f"line {number}: {problem}")


def scored_lines(pool: RewardPool, source: IO[bytes]) -> Iterator[tuple[str, float]]:
    """Output lines in order, each with its reward."""
    waiting: deque[tuple[int, dict[str, Any], Future[Reward] | Reward]] = deque()
    for number, line in enumerate(source, start=1):
        waiting.append((number, *submit_line(pool, line, number)))
        if len(waiting) == IN_FLIGHT:
            yield finish(*waiting.popleft())
    while waiting:
        yield finish(*waiting.popleft())


def finish(number: int, row: dict[str, Any], pending: Future[Reward] | Reward) -> tuple[str, float]:
    """Wait for a reward and write its line."""
    reward = pending if isinstance(pending, Reward) else pending.result()
    try:
        line = json.dumps({**row, "reward": reward.value, "reason": reward.reason}, allow_nan=False)
    except (ValueError, RecursionError):
        row, reward = unreadable(number, "holds a number that JSON cannot (NaN or an infinity), or nests too deeply")
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
    partial = options.output.with_name(f".{options.output.name}.{os.getpid()}.partial")
    try:
        summary = write_scores(options, partial)
        os.replace(partial, options.output)
    except OSError as error:
        raise UserError(f"{error.filename or partial}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    print(f"{summary}, written to {options.output}")


def write_scores(options: ScoreOptions, partial: Path) -> str:
    """Score into the file `partial`, with a progress bar on a terminal; returns a summary."""
    started = time.monotonic()
    lines, rewards = 0, 0.0
    columns = (TextColumn("scored"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        RewardPool(options.workers, options.time_limit) as pool,
        options.input.open("rb") as source,
        partial.open("w", encoding="ascii") as target,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        bar = progress.add_task("", total=count_lines(options.input) if console.is_terminal else None)
        for line, reward in scored_lines(pool, source):
            target.write(line + "\n")
            lines, rewards = lines + 1, rewards + reward
            progress.advance(bar)
    mean = rewards / lines if lines else 0.0
    return f"{lines} lines, mean reward {mean:.4f}, {time.monotonic() - started:.1f} s"


def count_lines(path: Path) -> int:
    """Lines of a file, for the progress bar."""
    with path.open("rb") as source:
        return sum(1 for _ in source)


def main() -> None:
    """Command line."""
    score_file(tyro.cli(ScoreOptions))


if __name__ == "__main__":
    run_main(main)
