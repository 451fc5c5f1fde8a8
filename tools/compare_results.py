"""Compare two evaluations of benchmarks problem by problem: difference, interval, McNemar's test. Prints one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from megatron_ring.benchmarks.compare import compare
from megatron_ring.errors import UserError, run_main
from megatron_ring.rollout.journal import read_journals


@dataclass(frozen=True)
class Flags:
    """Compare the scores of two `megatron_ring.evaluate` folders on the benchmarks that both have."""

    first: Path
    """--out folder of the first evaluation."""
    second: Path
    """--out folder of the second."""
    seed: int = 0
    """Of the bootstrap."""


def main(flags: Flags) -> None:
    described = [_result(flags.first, "--first"), _result(flags.second, "--second")]
    scores = [_scores(folder) for folder in (flags.first, flags.second)]
    shared = [name for name in scores[0] if name in scores[1]]
    if not shared:
        raise UserError(f"--first {flags.first} and --second {flags.second} have no benchmark in common")
    found: dict[str, Any] = {}
    for name in shared:
        files = [part[name]["problems_sha256"] for part in described]
        if files[0] != files[1]:
            raise UserError(f"{name}: the two were measured on other problems or prompts: evaluate both with one file")
        found[name] = asdict(compare(scores[0][name], scores[1][name], flags.seed))
    print(json.dumps(found, indent=1))


def _result(folder: Path, flag: str) -> dict[str, Any]:
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text())
        return {part["benchmark"]: part for part in result["benchmarks"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{flag} {path}: no result of benchmarks: give the --out folder of an evaluation") from None


def _scores(folder: Path) -> dict[str, dict[str, list[float]]]:
    """By benchmark and problem, what has a verdict."""
    found: dict[str, dict[str, list[float]]] = {}
    for (benchmark, problem, _), row in sorted(read_journals(folder / "responses")[1].items()):
        if row["score"] is not None:
            found.setdefault(benchmark, {}).setdefault(problem, []).append(row["score"])
    return found


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
