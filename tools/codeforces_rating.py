"""The CodeElo rating and percentile of an evaluation on Codeforces. Prints one JSON object."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from megatron_ring.benchmarks.codeelo import contest_rating, percentile
from megatron_ring.errors import UserError, run_main
from megatron_ring.rollout.journal import read_journals


@dataclass(frozen=True)
class Flags:
    """Rate the Codeforces responses of a `megatron_ring.evaluate` folder against the contestants of their contests."""

    evaluation: Path
    """--out folder of the evaluation."""
    contests: Path
    """Folder of ID.json: an object of `standings` and `ratingChanges`, as Codeforces' API gives them."""
    ratings: Path
    """JSON list of the ratings of all users, sorted (sorted_ratings.json of CodeElo)."""


def main(flags: Flags) -> None:
    tries = _tries(flags.evaluation)
    ratings = _json(flags.ratings, "--ratings")
    if not isinstance(ratings, list) or not ratings or ratings != sorted(ratings):
        raise UserError(f"--ratings {flags.ratings}: not a sorted list of ratings")
    rated: dict[str, float] = {}
    without = []
    for contest, problems in sorted(tries.items()):
        path = flags.contests / f"{contest}.json"
        if not path.exists():
            without.append(contest)
            continue
        try:
            rated[contest] = contest_rating(_json(path, "--contests"), problems)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    if not rated:
        raise UserError(f"--contests {flags.contests}: holds no {', '.join(f'{name}.json' for name in without[:5])}")
    mean = sum(rated.values()) / len(rated)
    found = {"rating": mean, "percentile": percentile(mean, ratings), "contests": rated, "without_standings": without}
    print(json.dumps(found, indent=1))


def _tries(folder: Path) -> dict[str, dict[str, list[bool]]]:
    """Results of the samples in order, by contest and index; ids are CONTEST/INDEX."""
    tries: dict[str, dict[str, list[bool]]] = {}
    for (benchmark, problem, _), row in sorted(read_journals(folder / "responses")[1].items()):
        contest, slash, index = problem.partition("/")
        if benchmark == "codeforces" and slash and row["score"] is not None:
            tries.setdefault(contest, {}).setdefault(index, []).append(row["score"] >= 1)
    if not tries:
        raise UserError(f"--evaluation {folder}: no scored response on codeforces")
    return tries


def _json(path: Path, flag: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {path}: cannot be read: {error}") from None


if __name__ == "__main__":
    run_main(lambda: main(tyro.cli(Flags)))
