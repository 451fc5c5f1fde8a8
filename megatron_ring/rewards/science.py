r"""Science: as mathematics, and where the reference is a number with a unit, the unit must agree too.

The number and the unit are compared apart. Units are compared as written, apart from spelling (`units.parse_unit`);
nothing is converted: 100 cm is not 1 m, the prompt names the unit it wants. A reference without a unit is mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.exact import NUMBER
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.math import (
    CORRECT,
    MAX_ANSWER_CHARACTERS,
    NO_BOX,
    clean,
    compare,
    differs,
    quick_compare,
    reference_text,
)
from megatron_ring.rewards.units import Unit, looks_like_unit, parse_unit

_TEXT_COMMANDS = ("\\text{", "\\mathrm{", "\\textrm{", "\\operatorname{", "\\mbox{")


def verify(response: str, answer: Any) -> Reward:
    """Score a response against a reference answer. May take unbounded time: call it through `RewardPool`."""
    reward = _verify(response, answer, compare)
    assert reward is not None  # `compare` always decides
    return reward


def score(request: ScoreRequest) -> Reward:
    """`verify` for the registry."""
    return verify(request.response, request.answer)


def quick_score(request: ScoreRequest) -> Reward | None:
    """What is certain without Math-Verify: plain numbers, units that differ, identical text. None for the rest."""
    return _verify(request.response, request.answer, quick_compare)


def split_quantity(text: str) -> tuple[str, str] | None:
    """Split a cleaned answer into its number and what follows it; None when nothing follows a number."""
    number = NUMBER.match(text)
    if number is not None and number.end() < len(text):
        head, tail = text[: number.end()], text[number.end() :]
        if parse_unit(tail) is not None:
            return head, tail
    # A number that is not plain, such as \sqrt{2}: its unit has to be set as text.
    starts = [start for start in (text.find(command) for command in _TEXT_COMMANDS) if start > 0]
    if not starts:
        return None
    return text[: min(starts)].rstrip(" ~\\,;"), text[min(starts) :]


def _verify(response: str, answer: Any, compare_numbers: Callable[[str, str], Reward | None]) -> Reward | None:
    given = last_boxed(response)
    if given is None:
        return NO_BOX
    reference = reference_text(answer)
    if isinstance(reference, Reward):
        return reference
    quantity = split_quantity(clean(reference))
    if quantity is None or not looks_like_unit(quantity[1]):
        return compare_numbers(given, reference)
    if len(given) > MAX_ANSWER_CHARACTERS:
        return quick_compare(given, reference)
    if clean(given) == clean(reference):
        return CORRECT
    number, unit_text = quantity
    unit = parse_unit(unit_text)
    given_quantity = split_quantity(clean(given))
    given_unit: Unit | None = None if given_quantity is None else parse_unit(given_quantity[1])
    if given_quantity is None or given_unit is None:
        return Reward(0.0, f"no unit: {differs(given, reference).reason}")
    if given_unit != unit:
        return Reward(0.0, f"another unit: {differs(given, reference).reason}")
    return compare_numbers(given_quantity[0], number)
