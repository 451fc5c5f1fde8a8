r"""Mathematics: reward 1 when the last `\boxed{}` equals the reference, 0 otherwise. No reward for format.

An answer is taken apart (`structure`), its parts are compared exactly (`atoms`, `surds`), in microseconds. What is algebra
goes to Math-Verify, which has to be imported and run in a process that can be killed: sympy hangs on `9^{9^{9^9}}`, and
Math-Verify's own time limits need a main thread.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.atoms import settle, strip_preamble
from megatron_ring.rewards.boxed import last_boxed, marked_answer
from megatron_ring.rewards.choice import choice_agrees, choice_differs
from megatron_ring.rewards.exact import PlainNumber, numbers_agree, parse_number
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.normalise import clean, defines_macros, nesting, normalise
from megatron_ring.rewards.structure import answers_agree, parse_answer

MAX_ANSWER_CHARACTERS = 4096
MAX_NESTING = 100
NO_BOX = Reward(0.0, "no boxed answer")
CORRECT = Reward(1.0, "correct")

_TINY = Fraction(1, 1000)


def verify(response: str, answer: Any) -> Reward:
    r"""Score a response against a reference answer (a string, with or without `$…$` or `\boxed{}`, or a number).

    May take unbounded time and memory: call it through `RewardPool`.
    """
    given = last_boxed(response)
    if given is None:
        return NO_BOX
    reference = reference_text(answer)
    if isinstance(reference, Reward):
        return reference
    return compare(given, reference)


def score(request: ScoreRequest) -> Reward:
    """`verify` for the registry."""
    return verify(request.response, request.answer)


def quick_score(request: ScoreRequest) -> Reward | None:
    """What is certain without Math-Verify: no box, exact values, identical text, a choice. None for the rest."""
    given = last_boxed(request.response)
    if given is None:
        return NO_BOX
    reference = reference_text(request.answer)
    if isinstance(reference, Reward):
        return reference
    return quick_compare(given, reference)


def reference_text(answer: Any) -> str | Reward:
    """The reference as text, or the reward for a response whose reference is of no use."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return Reward(0.0, f"the reference answer must be text or a number, not {type(answer).__name__}")
    text = str(answer)
    boxed = last_boxed(text)
    text = (marked_answer(text) or text) if boxed is None else boxed
    if not clean(text):
        return Reward(0.0, "the reference answer is empty")
    return text


def check_reference(answer: Any) -> None:
    """Raise `UserError` for a reference that `reference_text` cannot use."""
    reference = reference_text(answer)
    if isinstance(reference, Reward):
        raise UserError(reference.reason)


def quick_compare(given: str, reference: str) -> Reward | None:
    """Compare two answers (contents of a box) where that takes no algebra; None where it does."""
    if len(given) > MAX_ANSWER_CHARACTERS:
        if given == reference:
            return CORRECT
        return Reward(0.0, f"the boxed answer has {len(given)} characters, more than {MAX_ANSWER_CHARACTERS}")
    given_text, reference_clean = clean(given), clean(reference)
    if not given_text:
        return Reward(0.0, "the boxed answer is empty")
    if given_text == reference_clean or choice_agrees(reference_clean, given_text):
        return CORRECT
    given_number, reference_number = parse_number(given_text), parse_number(reference_clean)
    if given_number is not None and reference_number is not None:
        return CORRECT if numbers_agree(reference_number, given_number) else differs(given, reference)
    if choice_differs(reference_clean, given_text) or len(reference) > MAX_ANSWER_CHARACTERS:
        return differs(given, reference)
    if defines_macros(given):
        return Reward(0.0, "boxed answer defines macros or reads files")
    if nesting(given) > MAX_NESTING:
        return Reward(0.0, f"boxed answer nests brackets more than {MAX_NESTING} deep")
    agree = _agree(given, reference, None)
    return None if agree is None else CORRECT if agree else differs(given, reference)


def compare(given: str, reference: str) -> Reward:
    """Compare two answers (contents of a box), with Math-Verify where plain comparison does not decide."""
    decided = quick_compare(given, reference)
    if decided is not None:
        return decided
    algebra = _Algebra()
    agree = _agree(given, reference, algebra)
    if agree:
        return CORRECT
    return Reward(0.0, algebra.problem) if algebra.problem else differs(given, reference)


def prepare() -> None:
    """Load Math-Verify and its parser's tables, so that the first answer is not charged for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    compare(r"\sqrt{2}+x", r"x+\sqrt{2}")


def differs(given: str, reference: str) -> Reward:
    """The reward for a wrong answer."""
    return Reward(0.0, f"boxed {_short(given)}, expected {_short(reference)}")


def _agree(given: str, reference: str, algebra: _Algebra | None) -> bool | None:
    def decide(wanted: str, got: str) -> bool | None:
        settled = settle(wanted, got)
        if isinstance(settled, bool) or algebra is None:
            return settled if isinstance(settled, bool) else None
        return algebra.equal(*settled)

    wanted, got = parse_answer(normalise(reference)), parse_answer(strip_preamble(normalise(given)))
    return answers_agree(wanted, got, decide)


class _Algebra:
    """Math-Verify, and what it could not read."""

    def __init__(self) -> None:
        self.problem = ""

    def equal(self, reference: str, given: str) -> bool:
        import math_verify

        # Its time limits use signals and cost a handler per call; the pool's kill bounds the time instead.
        reference_parsed = math_verify.parse(f"${reference}$", parsing_timeout=None)
        given_parsed = math_verify.parse(f"${given}$", parsing_timeout=None)
        if not reference_parsed:
            self.problem = f"the reference answer {_short(reference)} cannot be parsed"
            return False
        if not given_parsed:
            self.problem = f"the boxed answer {_short(given)} cannot be parsed"
            return False
        number = parse_number(reference)
        if number is not None and number.value != 0 and abs(number.value) < _TINY:
            reference_parsed, given_parsed = _scaled(number, given_parsed)
        # The order matters: verify(reference, answer) is not symmetric.
        return bool(math_verify.verify(reference_parsed, given_parsed, timeout_seconds=None))


def _scaled(reference: PlainNumber, given: list[Any]) -> tuple[list[Any], list[Any]]:
    """Both sides divided by a tiny reference: Math-Verify compares to an absolute precision, 1e-34 would equal 0."""
    from sympy import Expr, Integer, Rational

    divisor = Rational(reference.value.numerator, reference.value.denominator)
    return [Integer(1)], [parsed / divisor for parsed in given if isinstance(parsed, Expr)]


def _short(text: str) -> str:
    text = clean(text)
    written = repr(text[:81])
    return written if len(written) <= 82 else written[:78] + "...'"
