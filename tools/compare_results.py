"""Compare two evaluations of benchmarks problem by problem: difference, interval, McNemar's test. Prints one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from megatron_ring.benchmarks.compare import compare
from megatron_ring.errors import UserError, run_main
from megatron_ring.rollout.journal import read_scores


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
    results = [_result(flags.first, "--first"), _result(flags.second, "--second")]
    described = [{part["benchmark"]: part for part in result["benchmarks"]} for result in results]
    judges = [_judge(result) for result in results]
    folders = zip((flags.first, flags.second), judges, strict=True)
    scores = [_scores(folder, judge) for folder, judge in folders]
    for found_in, parts in zip(scores, described, strict=True):
        found_in.update({name: _majorities(part) for name, part in parts.items() if part.get("budget")})
    shared = [name for name in scores[0] if name in scores[1]]
    if not shared:
        raise UserError(f"--first {flags.first} and --second {flags.second} have no benchmark in common")
    found: dict[str, Any] = {}
    for name in shared:
        files = [part[name]["problems_sha256"] for part in described]
        if files[0] != files[1]:
            raise UserError(f"{name}: the two were measured on other problems or prompts: evaluate both with one file")
        if described[0][name].get("judge") and judges[0] != judges[1]:
            raise UserError(f"{name}: the two were judged by other judges or prompts: judge both alike")
        if _budget(described[0][name]) != _budget(described[1][name]):
            raise UserError(f"{name}: the two had other token budgets or rules: give both the same")
        found[name] = asdict(compare(scores[0][name], scores[1][name], flags.seed))
    print(json.dumps(found, indent=1))


def _result(folder: Path, flag: str) -> dict[str, Any]:
    path = folder / "result.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        if all(isinstance(part["benchmark"], str) for part in result["benchmarks"]):
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{flag} {path}: no result of benchmarks: give the --out folder of an evaluation") from None


def _judge(result: dict[str, Any]) -> str | None:
    """The fingerprint of its judge; None where it had none."""
    return (result.get("judge") or {}).get("fingerprint")


def _budget(part: dict[str, Any]) -> list[Any]:
    """What decides how a benchmark was sampled under a budget; empty where it had none."""
    budget = part.get("budget")
    names = ("tokens", "final_tokens", "confidence", "max_samples")
    return [] if budget is None else [*(budget[name] for name in names), *budget["rules"]]


def _majorities(part: dict[str, Any]) -> dict[str, list[float]]:
    """The majority's score by problem, under the rule that its other figures are of."""
    rule = next(iter(part["budget"]["rules"].values()))
    return {problem: [value] for problem, (_, value) in rule["by_problem"].items()}


def _scores(folder: Path, judge: str | None) -> dict[str, dict[str, list[float]]]:
    """By benchmark and problem, what has a verdict."""
    found: dict[str, dict[str, list[float]]] = {}
    for (benchmark, problem, _), row in sorted(read_scores(folder / "responses", judge).items()):
        if row["score"] is not None:
            found.setdefault(benchmark, {}).setdefault(problem, []).append(row["score"])
    return found


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
