"""Rows per second and memory of a curation without models, and of datasketch's MinHash on the same texts where it is installed.

The rows are GSM8K problems (`--data`) with other numbers and some copies. One JSON object: rows per second and core of each step,
with one process and with `--processes`, the peak memory of all processes, and as the ceiling the rate at which rows are
only read and written as JSON.
"""  # noqa: E501

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.curation.near import word_grams
from megatron_ring.curation.options import Annotate, Clean, Decontaminate, Exact, Near, Options
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.curation.text import words
from megatron_ring.errors import UserError, run_main

RIVAL_ROWS = 5000
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


def measure(recipe: Recipe, processes: int, rows: int) -> dict[str, Any]:
    """Seconds of each step, and rows per second and core."""
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        steps = run_recipe(recipe, Path(name) / "out", processes, lambda text: None)
        total = time.monotonic() - started
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
        "kept": steps[-1].tally.kept.total(),
    }


def rival(path: Path) -> dict[str, Any] | None:
    """datasketch: MinHash of the same word 5-grams, and its index of 14 bands of 8."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError:
        return None
    texts = [json.loads(line)["problem"] for line in path.read_text(encoding="utf-8").splitlines()[:RIVAL_ROWS]]
    started = time.monotonic()
    index = MinHashLSH(num_perm=112, params=(14, 8))
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=112)
        signature.update_batch([gram.encode() for gram in word_grams(words(text), 5)])
        index.query(signature)
        index.insert(number, signature)
    return {"rows_per_second_per_core": round(len(texts) / (time.monotonic() - started)), "rows": len(texts)}


def ceiling(path: Path) -> int:
    """Rows per second and core that are read and written as JSON, no more."""
    lines = path.read_bytes().splitlines()[:20_000]
    started = time.monotonic()
    for line in lines:
        json.dumps(json.loads(line))
    return round(len(lines) / (time.monotonic() - started))


def main() -> None:
    """Command line."""
    options = parse(BenchOptions, "tools/bench_curation.py", __doc__ or "")
    if not options.data.is_file():
        raise UserError(f"--data {options.data}: no such file: give gsm8k_train.jsonl")
    with tempfile.TemporaryDirectory() as name:
        path, benchmark = Path(name) / "rows.jsonl", Path(name) / "gsm8k-held.jsonl"
        write_rows(options, path, benchmark)
        source = (Source("rows", (path,)),)
        recipes: dict[str, tuple[Options, ...]] = {
            "clean and exact": (Clean(languages=("en",)), Exact()),
            "near": (Near(),),
            "all": (
                Clean(languages=("en",)),
                Exact(),
                Near(),
                Decontaminate(benchmarks=(benchmark,)),
                Annotate(),
            ),
        }
        result: dict[str, Any] = {
            "rows": options.rows,
            "cores": os.cpu_count(),
            "json_rows_per_second_per_core": ceiling(path),
        }
        for title, steps in recipes.items():
            runs = [measure(Recipe(source, steps), count, options.rows) for count in sorted({1, options.processes})]
            result[title] = {"runs": runs, "scaling": round(runs[0]["total_seconds"] / runs[-1]["total_seconds"], 2)}
        result["datasketch"] = rival(path)
    usage = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result["peak_megabytes_of_one_process"] = round(max(usage) / 1024)
    print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
