"""Rows per second and memory of a curation without models.

The rows are GSM8K problems (`--data`) with other numbers and some copies. One JSON object: rows per second and core of each
recipe with one process and with `--processes`, and the most memory that all processes had together. Two ceilings of this
machine stand beside them: the rate at which rows are only read and written as JSON, and how much faster several processes
do that than one. `--recipe all --rows 2000000` measures one recipe alone. tools/bench_duplicates.py has the rival.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.curation.options import Annotate, Clean, Decontaminate, Exact, Near, Options
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.curation.workers import Workers
from megatron_ring.errors import UserError, run_main

RECIPES = ("clean and exact", "near", "all")
CEILING_ROWS = 20_000
HELD = 500  # problems that are the benchmark, and in no row


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured."""

    data: Path
    """gsm8k_train.jsonl as it is downloaded."""
    rows: int = 100_000
    """Rows of the corpus."""
    processes: int = 2
    """Processes of the second run."""
    recipe: Literal["each", "clean and exact", "near", "all"] = "each"
    """What is measured; another than `each` runs once, with `--processes`."""
    seed: int = 1
    """Seed of every draw."""


def write_rows(options: BenchOptions, path: Path, benchmark: Path) -> None:
    """Problems with other numbers; one in twenty is a copy of one with other white space. The file's last problems become
    the benchmark."""
    rng = random.Random(options.seed)
    lines = options.data.read_text(encoding="utf-8").splitlines()
    benchmark.write_text("".join(f"{line}\n" for line in lines[-HELD:]), encoding="utf-8")
    given = [json.loads(line) for line in lines[:-HELD]]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(options.rows):
            row = given[number % len(given)]
            text = row["question"]
            if number >= len(given) and rng.random() > 0.05:
                text = re.sub(r"\d+", lambda _: str(rng.randint(2, 99_999)), text)
            solution = row["answer"].rpartition("####")
            row = {
                "problem": text.replace(" ", "  ", 1),
                "answer": solution[2].strip(),
                "source": "gsm8k",
                "level": number % 5,
            }
            stream.write(json.dumps(row) + "\n")


class Watch:
    """Watches this process and those that it started: what they hold together (RSS, so shared pages count several times),
    and the processor time of the others.

    Attributes:
        workers: seconds of processor that the others have used.
    """

    def __init__(self) -> None:
        self.workers = 0.0
        self._seen: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            megabytes, seconds = tree()
            self._seen.append(megabytes)
            self.workers = max(self.workers, seconds)

    def tenths(self) -> list[int]:
        """The most in each tenth of the time."""
        count = len(self._seen)
        parts = [self._seen[i * count // 10 : max(i * count // 10 + 1, (i + 1) * count // 10)] for i in range(10)]
        return [max(part, default=0) for part in parts]


def tree() -> tuple[int, float]:
    """Megabytes of this process and of all that descend from it (RSS); seconds of processor of the latter."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            process = int(folder.name)
            parents[process], pages[process] = int(state[1]), int(state[21])
            ticks[process] = int(state[11]) + int(state[12])
    own = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in own and child not in own}:
        own |= more
    seconds = sum(ticks.get(process, 0) for process in own - {os.getpid()}) / os.sysconf("SC_CLK_TCK")
    return sum(pages.get(process, 0) for process in own) * os.sysconf("SC_PAGE_SIZE") >> 20, seconds


def measure(recipe: Recipe, processes: int, rows: int) -> dict[str, Any]:
    """Seconds of each step, and rows per second and core."""
    with tempfile.TemporaryDirectory() as name, Watch() as watch:
        started, used = time.monotonic(), time.process_time()
        steps = run_recipe(recipe, Path(name) / "out", processes, lambda text: None)
        total, used = time.monotonic() - started, time.process_time() - used
        seconds = {step.name: step.seconds or 0.0 for step in steps}
        # A step that compares all rows has two passes; what no step counts is their first.
        first = total - sum(seconds.values())
    return {
        "processes": processes,
        "seconds": {
            **{step: round(taken, 2) for step, taken in seconds.items()},
            "signatures, decisions, results": round(first, 2),
        },
        "total_seconds": round(total, 2),
        "rows_per_second": round(rows / total),
        "rows_per_second_per_core": round(rows / total / processes),
        "megabytes_of_all_processes": watch.tenths(),
        "processor_seconds": {"this process": round(used, 2), "workers": round(watch.workers, 2)},
        "kept": steps[-1].tally.kept.total(),
    }


def json_work(path: Path) -> None:
    """Rows that are only read and written as JSON."""
    with path.open("rb") as stream:
        for _, line in zip(range(CEILING_ROWS), stream, strict=False):
            json.dumps(json.loads(line))


def ceilings(path: Path, processes: int) -> dict[str, Any]:
    """Rows per second and core of `json_work`, and how much faster several processes do it than one."""
    calls = [(json_work, (path,))] * (4 * processes)
    seconds = []
    for count in (1, processes):
        with Workers(count) as workers:
            workers.run([(os.getpid, ())] * count, lambda: None)  # they have started
            started = time.monotonic()
            workers.run(calls, lambda: None)
            seconds.append(time.monotonic() - started)
    return {
        "json_rows_per_second_per_core": round(CEILING_ROWS * len(calls) / seconds[0]),
        "json_scaling": round(seconds[0] / seconds[1], 2),
    }


def main() -> None:
    """Command line."""
    options = parse(BenchOptions, "tools/bench_curation.py", __doc__ or "")
    if not options.data.is_file():
        raise UserError(f"--data {options.data}: no such file: give gsm8k_train.jsonl")
    with tempfile.TemporaryDirectory() as name:
        path, benchmark = Path(name) / "rows.jsonl", Path(name) / "gsm8k-held.jsonl"
        write_rows(options, path, benchmark)
        source = (Source("rows", (path,)),)
        clean, exact, near = Clean(languages=("en",)), Exact(), Near()
        recipes: dict[str, tuple[Options, ...]] = {
            "clean and exact": (clean, exact),
            "near": (near,),
            "all": (clean, exact, near, Decontaminate(benchmarks=(benchmark,)), Annotate()),
        }
        result: dict[str, Any] = {
            "rows": options.rows,
            "cores": os.cpu_count(),
            **ceilings(path, options.processes),
        }
        for title, steps in recipes.items():
            if options.recipe not in ("each", title):
                continue
            counts = sorted({1, options.processes}) if options.recipe == "each" else [options.processes]
            runs = [measure(Recipe(source, steps), count, options.rows) for count in counts]
            result[title] = {"runs": runs, "scaling": round(runs[0]["total_seconds"] / runs[-1]["total_seconds"], 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
