"""Measure how fast answers are judged: one JSON object, with plain Math-Verify through the same pool beside it.

Integers, decimals, fractions and LaTeX are decided by the quick path, in the calling process; algebra goes to the workers.
Half of the answers are right, and every reward is checked, so that a rate counts verdicts and not returns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards import RewardPool, ScoreRequest

BATCH = 4096
BASELINE = "baseline/math-verify"
_RATIONALE = "First we add the two parts, 12 + 30 = 42, and then we multiply.\n" * 8


@dataclass(frozen=True)
class BenchOptions:
    """How much to measure.

    Attributes:
        items: integer answers; other forms of the quick path get a tenth of it.
        algebra: answers that need a worker.
        baseline: answers of each kind for plain Math-Verify.
        workers: verifier processes.
    """

    items: int = 1_000_000
    algebra: int = 1000
    baseline: int = 400
    workers: int = 2


def integer(n: int, right: bool) -> tuple[str, str]:
    """An answer and its reference; so are those below."""
    return f"{n if right else n + 1}", f"{n:,}"


def decimal(n: int, right: bool) -> tuple[str, str]:
    return f"{n if right else n + 1}.250", f"{n}.25"


def fraction(n: int, right: bool) -> tuple[str, str]:
    return rf"\dfrac{{{2 * n + 2 * right}}}{{14}}", rf"\frac{{{n + 1}}}{{7}}"


def latex(n: int, right: bool) -> tuple[str, str]:
    return rf"\left( \frac{{{n}\pi}}{{4}}, \sqrt{{8}} \right]", rf"({n}\pi/{4 if right else 3}, 2\sqrt2]"


def algebra(n: int, right: bool) -> tuple[str, str]:
    return rf"x^2+{n}x+{n if right else n + 1}", rf"{n}+{n}x+x^2"


def quantity(n: int, right: bool) -> tuple[str, str]:
    return rf"{n}.5\ \mathrm{{m\,s^{{-{2 if right else 1}}}}}", f"{n}.5 m/s^2"


def measure(pool: RewardPool, domain: str, make: Callable[[int, bool], tuple[str, str]], count: int) -> dict[str, Any]:
    """Answers per second of wall clock through `RewardPool.score`, and how many verdicts were wrong."""
    seconds, wrong = 0.0, 0
    for start in range(0, count, BATCH):
        requests, expected = [], []
        for n in range(start, min(start + BATCH, count)):
            given, reference = make(n + 5, n % 2 == 0)
            requests.append(ScoreRequest(domain, None, rf"{_RATIONALE}\boxed{{{given}}}", reference))
            expected.append(float(n % 2 == 0))
        started = time.perf_counter()
        rewards = pool.score(requests)
        seconds += time.perf_counter() - started
        wrong += sum(reward.value != value for reward, value in zip(rewards, expected, strict=True))
    return {"items": count, "per_second": round(count / seconds, 1), "wrong_verdicts": wrong}


def bench(options: BenchOptions) -> dict[str, Any]:
    """Every rate.

    Raises:
        UserError: a number that is not positive.
    """
    for name in ("items", "algebra", "baseline", "workers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: use at least 1")
    few = max(options.items // 10, 1)
    result: dict[str, Any] = {"cpus": os.cpu_count(), "workers": options.workers, "load_before": os.getloadavg()[0]}
    with RewardPool(options.workers, time_limit=30.0) as pool:
        measure(pool, "math", algebra, 4 * options.workers)  # workers are up
        result["ours"] = {
            "integer": measure(pool, "math", integer, options.items),
            "decimal": measure(pool, "math", decimal, few),
            "fraction": measure(pool, "math", fraction, few),
            "latex_interval": measure(pool, "math", latex, max(few // 10, 1)),
            "science_quantity": measure(pool, "science", quantity, max(few // 10, 1)),
            "pool_algebra": measure(pool, "math", algebra, options.algebra),
        }
        makers = {"integer": integer, "decimal": decimal, "fraction": fraction, "latex_interval": latex, "algebra": algebra}
        result["plain_math_verify"] = {
            name: measure(pool, BASELINE, make, options.baseline) for name, make in makers.items()
        }
    return result


def main() -> None:
    """Command line."""
    print(json.dumps(bench(tyro.cli(BenchOptions)), indent=2))


if __name__ == "__main__":
    run_main(main)
