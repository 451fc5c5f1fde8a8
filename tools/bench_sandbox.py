"""Short Python runs per second in the sandbox: the warm interpreter against a fresh `bwrap … python3 -I` per run.

Both run the same program with the same limits, in turns within one run of this tool. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards.sandbox import Limits, RunResult, bwrap
from megatron_ring.rewards.sandbox.fresh import Fresh, Unsafe
from megatron_ring.rewards.sandbox.images import python_interpreter
from megatron_ring.rewards.sandbox.runner import CodeRunner

PROGRAM = "a, b = map(int, input().split())\nprint(a * b)\n"
LIMITS = Limits(seconds=30.0)


@dataclass(frozen=True)
class BenchOptions:
    """Measure how many short Python runs the sandbox makes per second.

    Attributes:
        runs: runs of each kind per round.
        rounds: rounds; the median of each kind is reported.
        parallel: runs at a time.
        in_flight: runs at a time where the time of each is measured, warm.
    """

    runs: int = 40
    rounds: int = 5
    parallel: int = min(4, os.cpu_count() or 1)
    in_flight: int = 64


def rate(one: Callable[[], RunResult], options: BenchOptions) -> float:
    """Runs per second of `one`, every one of which must be right."""
    started = time.perf_counter()
    with ThreadPoolExecutor(max_workers=options.parallel) as pool:
        results = list(pool.map(lambda _: one(), range(options.runs)))
    seconds = time.perf_counter() - started
    for result in results:
        if result.stdout.strip() != b"42":
            raise UserError(f"a run failed: {result.reason} {result.stderr[-200:]!r}")
    return options.runs / seconds


def latencies(one: Callable[[], RunResult], in_flight: int) -> dict[str, float]:
    """Seconds per run, from asking to result, with `in_flight` runs at any time."""

    def timed() -> float:
        started = time.perf_counter()
        if one().stdout.strip() != b"42":
            raise UserError("a run failed")
        return time.perf_counter() - started

    with ThreadPoolExecutor(max_workers=in_flight) as pool:
        seconds = sorted(pool.map(lambda _: timed(), range(16 * in_flight)))
    return {name: round(seconds[int(share * (len(seconds) - 1))], 3) for name, share in (("p50", 0.5), ("p99", 0.99))}


def measure(options: BenchOptions) -> dict[str, object]:
    """All kinds in turns, round by round, so that other load on the machine falls on all of them alike."""
    if options.runs < 1 or options.rounds < 1 or min(options.parallel, options.in_flight) < 1:
        raise UserError("--runs, --rounds and --parallel: use at least 1")
    bwrap.isolated()
    python, binds = python_interpreter()
    plain = Fresh((python, "-I", "-c", PROGRAM), binds, LIMITS)
    bare = Unsafe(plain.command, (), LIMITS)
    with CodeRunner() as warm:
        kinds: dict[str, Callable[[], RunResult]] = {
            "warm": lambda: warm.python("script", {"source": PROGRAM}, LIMITS, b"6 7\n"),
            "fresh": lambda: plain.run(b"6 7\n"),
            "no_sandbox": lambda: bare.run(b"6 7\n"),  # what starting an interpreter costs here, the ceiling of "fresh"
        }
        for one in kinds.values():
            one()
        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(options.rounds):
            for name, one in kinds.items():
                rates[name].append(rate(one, options))
        tail = latencies(kinds["warm"], options.in_flight)
    ratios = [a / b for a, b in zip(rates["warm"], rates["fresh"], strict=True)]
    return {
        "runs_per_second": {name: round(median(values), 1) for name, values in rates.items()},
        "milliseconds_per_run": {name: round(1000 / median(values), 2) for name, values in rates.items()},
        "speedup": round(median(ratios), 2),
        "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
        "seconds_per_run_in_flight": {"in_flight": options.in_flight, **tail},
        "runs": options.runs,
        "rounds": options.rounds,
        "parallel": options.parallel,
        "hardware": {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "load": round(os.getloadavg()[0], 2),
        },
        "sandboxed": bwrap.isolated(),
    }


def main() -> None:
    """Command line."""
    print(json.dumps(measure(tyro.cli(BenchOptions))))


if __name__ == "__main__":
    run_main(main)
