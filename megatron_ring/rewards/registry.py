"""Which verifier scores which domain. A new domain is one line here."""

from __future__ import annotations

from megatron_ring.errors import UserError
from megatron_ring.rewards import math, science
from megatron_ring.rewards.interface import Verifier
from megatron_ring.rewards.logic import GAMES

VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(score=math.score, quick_score=math.quick_score),
    "science": Verifier(score=science.score, quick_score=science.quick_score),
    **{f"logic/{name}": Verifier(score=game.score) for name, game in GAMES.items()},
}


def verifier_for(domain: str) -> Verifier:
    """The verifier of `domain`.

    Raises:
        UserError: there is none of exactly this name.
    """
    if domain not in VERIFIERS:
        raise UserError(f"unknown domain {domain!r}: use one of {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[domain]
