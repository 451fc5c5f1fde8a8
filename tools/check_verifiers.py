"""Judge thousands of generated pairs of answers, and compare each verdict with what SymPy or plain numbers say.

Prints one JSON object: how many pairs of each kind, which wrong answers were accepted and which right ones refused. Exit
status 1 when a wrong one was accepted or more than 0.5 % of the right ones were refused.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards import RewardPool, ScoreRequest
from tools.verifier_pairs import KINDS, Pair, generate

MAX_REFUSED = 0.005


@dataclass(frozen=True)
class CheckOptions:
    """What to generate.

    Attributes:
        pairs: of all kinds together.
        seed: the same seed gives the same pairs.
        workers: verifier processes.
        shown: failures that are printed, of each sort.
    """

    pairs: int = 6000
    seed: int = 1
    workers: int = 2
    shown: int = 50


def check(pairs: list[Pair], workers: int, shown: int = 50) -> dict[str, Any]:
    """Score the pairs and say where the verdicts are not the truth."""
    with RewardPool(workers, time_limit=20.0) as pool:
        rewards = pool.score(ScoreRequest(pair.domain, None, rf"\boxed{{{pair.given}}}", pair.reference) for pair in pairs)
    accepted = [pair for pair, reward in zip(pairs, rewards, strict=True) if reward.value and not pair.equal]
    refused = [pair for pair, reward in zip(pairs, rewards, strict=True) if not reward.value and pair.equal]
    return {
        "pairs": len(pairs),
        "equal": sum(pair.equal for pair in pairs),
        "kinds": dict(Counter(pair.kind for pair in pairs)),
        "wrong_accepted": len(accepted),
        "right_refused": len(refused),
        "refused_share": round(len(refused) / max(sum(pair.equal for pair in pairs), 1), 5),
        "accepted_pairs": [[pair.kind, pair.reference, pair.given] for pair in accepted[:shown]],
        "refused_pairs": [[pair.kind, pair.reference, pair.given] for pair in refused[:shown]],
    }


def main() -> None:
    """Command line."""
    options = tyro.cli(CheckOptions)
    if options.pairs < len(KINDS) or options.workers < 1:
        raise UserError(f"--pairs {options.pairs} --workers {options.workers}: use at least {len(KINDS)} and 1")
    result = check(generate(options.pairs, options.seed), options.workers, options.shown)
    print(json.dumps(result, indent=2))
    if result["wrong_accepted"] or result["refused_share"] > MAX_REFUSED:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
