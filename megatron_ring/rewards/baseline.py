"""Plain Math-Verify on the whole response, to compare `math` with. Not for training: it takes any number for an answer."""

from __future__ import annotations

from megatron_ring.rewards.interface import Reward, ScoreRequest


def score(request: ScoreRequest) -> Reward:
    """What `math_verify.verify(parse(answer), parse(response))` says."""
    import math_verify

    reference = math_verify.parse(f"${request.answer}$", parsing_timeout=None)
    given = math_verify.parse(request.response, parsing_timeout=None)
    return Reward(float(math_verify.verify(reference, given, timeout_seconds=None)), "plain math-verify")
