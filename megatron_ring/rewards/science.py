r"""Science: as mathematics, and where the reference is a number with a unit, the answer must be that quantity.

The number and the unit are read apart. An answer in another unit of the same kind is converted: 100 cm is 1 m. Numbers
with decimals agree as measurements do (`exact.measured_agree`). A reference without a unit is mathematics otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from megatron_ring.rewards.atoms import spaced_unit, split_unit, strip_preamble
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.choice import choice_agrees
from megatron_ring.rewards.exact import NUMBER, PlainNumber, measured_agree, parse_number
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.math import (
    CORRECT,
    MAX_ANSWER_CHARACTERS,
    NO_BOX,
    compare,
    differs,
    quick_compare,
    reference_text,
)
from megatron_ring.rewards.normalise import clean, normalise, unwrap
from megatron_ring.rewards.unit_conversion import Conversion
from megatron_ring.rewards.unit_names import with_symbols
from megatron_ring.rewards.units import conversion, looks_like_unit, parse_unit

_SYMBOL = re.compile(r"(?:\\?[A-Za-z]{0,12}|\\Delta\s?[A-Za-z])(?:_(?:\w|\{[^{}]{1,20}\}))?")
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
    """What is certain without algebra: plain numbers, units that differ, identical text. None for the rest."""
    return _verify(request.response, request.answer, quick_compare)


def split_quantity(text: str) -> tuple[str, str] | None:
    """Split a cleaned answer into its number and what follows it; None when nothing follows a number."""
    number = NUMBER.match(text)
    if number is not None and number.end() < len(text):
        head, tail = text[: number.end()], text[number.end() :]
        if parse_unit(tail) is not None:
            return head, tail
    # A number that is not plain, such as \sqrt{2}: its unit has to be set as text.
    start = spaced_unit(text)
    if start > 0:
        return text[:start], text[start:]
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
    if len(given) > MAX_ANSWER_CHARACTERS:
        return quick_compare(given, reference)
    wanted = with_symbols(_unset(clean(normalise(reference))))
    got = with_symbols(_unset(strip_preamble(clean(normalise(given)))))
    if wanted == got or choice_agrees(clean(reference), clean(given)):
        return CORRECT
    got = _value_of(got)
    quantity = split_quantity(_value_of(wanted))
    if quantity is None or not looks_like_unit(quantity[1]):
        # A reference without a unit: the answer's is dropped, and the digits as written are the tolerance.
        return CORRECT if _measured(_value_of(wanted), split_unit(got).head, 0) else compare_numbers(given, reference)
    number, unit = quantity
    given_quantity = split_quantity(got)
    if given_quantity is None or parse_unit(given_quantity[1]) is None:
        return Reward(0.0, f"no unit: {differs(given, reference).reason}")
    change = conversion(given_quantity[1], unit)
    if change is None:
        return Reward(0.0, f"another unit: {differs(given, reference).reason}")
    if not change.is_identity:
        return CORRECT if _converted_agrees(number, given_quantity[0], change) else differs(given, reference)
    if _measured(number, given_quantity[0], 100):
        return CORRECT
    return compare_numbers(given_quantity[0], number)


def _unset(text: str) -> str:
    r"""`\text{70 kg}` as `70 kg`; words stay as they are set."""
    inner = unwrap(text)
    return inner if NUMBER.match(inner) is not None else text


def _value_of(text: str) -> str:
    """Without the name that a value may have: `v = 5 m/s`. A leading `≈` is dropped, science rounds."""
    head, sign, value = text.rpartition("=")
    if not sign:
        head, sign, value = text.rpartition("\\approx")
    return value.strip() if sign and _SYMBOL.fullmatch(head.strip()) else text


def _measured(reference: str, given: str, integers_from: int) -> bool:
    """Whether two plain numbers agree as measurements. An integer counts as one from `integers_from` on, 0 for never."""
    wanted, got = parse_number(reference), parse_number(given)
    return wanted is not None and got is not None and _is_measured(wanted, integers_from) and measured_agree(wanted, got)


def _is_measured(number: PlainNumber, integers_from: int) -> bool:
    return number.rounded or bool(integers_from and number.step and abs(number.value) >= integers_from)


def _converted_agrees(reference: str, given: str, change: Conversion) -> bool:
    """Whether a plain number is the reference once it is converted: as a measurement, or to twelve digits or so."""
    wanted, got = parse_number(reference), parse_number(given)
    if wanted is None or got is None:
        return False
    converted = PlainNumber(change(got.value), True, abs(got.step * change.scale))
    if abs(converted.value - wanted.value) * 10**9 <= abs(wanted.value):
        return True
    if abs(got.value) >= 1000 * got.step and 2 * abs(converted.value - wanted.value) <= converted.step:
        return True  # four digits of its own: 60 km/h is 16.67 m/s
    return _is_measured(wanted, 100) and measured_agree(wanted, converted)
