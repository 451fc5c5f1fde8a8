"""Which verifier scores which domain. A new domain is one line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards import (
    baseline,
    code,
    format,
    instructions,
    math,
    science,
    short_answer,
    summary,
    tool_calls,
    unit_conversion,
)
from megatron_ring.rewards.code_formats import check_tests
from megatron_ring.rewards.interface import Reward, ScoreRequest, Verifier
from megatron_ring.rewards.logic import GAMES, exact
from megatron_ring.rewards.logic.game import read_reference

# A solution's tests have limits of their own, in the sandbox; this one bounds a hundred slow ones together.
CODE_SECONDS = 120.0


def _options(domain: str) -> Callable[[Any], object]:
    return partial(format.read_options, domain)


VERIFIERS: dict[str, Verifier] = {
    "math": Verifier(math.score, math.quick_score, check_reference=math.check_reference),
    "science": Verifier(
        science.score, science.quick_score, check_reference=math.check_reference, prepare=unit_conversion.prepare
    ),
    "code": Verifier(code.score, worker="code", time_limit=CODE_SECONDS, check_reference=check_tests),
    "instructions": Verifier(
        instructions.score, instructions.quick_score, worker="instructions", check_reference=instructions.read_task
    ),
    **{
        f"logic/{name}": Verifier(game.score, check_reference=partial(read_reference, game.read))
        for name, game in GAMES.items()
    },
    "logic/exact": Verifier(exact.score, check_reference=partial(read_reference, exact.read_text)),
    "format/thinking": Verifier(format.thinking, format.thinking, check_reference=_options("format/thinking")),
    "format/one_box": Verifier(format.one_box, format.one_box, check_reference=_options("format/one_box")),
    "format/json": Verifier(format.json_value, check_reference=_options("format/json")),
    "format/repetition": Verifier(format.repetition, check_reference=_options("format/repetition")),
    "format/script": Verifier(format.script, check_reference=_options("format/script")),
    "format/style": Verifier(format.style, format.style, check_reference=_options("format/style")),
    "format/language": Verifier(format.language, worker="instructions", check_reference=_options("format/language")),
    "qa/exact": Verifier(short_answer.exact, short_answer.quick_exact, check_reference=short_answer.read_references),
    "qa/f1": Verifier(short_answer.f1, check_reference=short_answer.read_references),
    "summary": Verifier(summary.score, check_reference=summary.read_rules),
    "tool-calls": Verifier(tool_calls.score, check_reference=tool_calls.read_wanted),
    "baseline/math-verify": Verifier(baseline.score),
}


def verifier_for(domain: str) -> Verifier:
    """The verifier of `domain`.

    Raises:
        UserError: there is none of exactly this name.
    """
    if domain not in VERIFIERS:
        raise UserError(f"unknown domain {domain!r}: use one of {', '.join(sorted(VERIFIERS))}")
    return VERIFIERS[domain]


def score(domain: str, prompt: Any, response: str, answer: Any) -> Reward:
    """Score one response in this process, where a hostile one may hang it: what a model wrote belongs in `RewardPool`.

    Raises:
        UserError: an unknown domain, or what its verifier lacks on this machine.
    """
    return verifier_for(domain).score(ScoreRequest(domain, prompt, response, answer))
