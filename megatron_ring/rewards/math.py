r"""Mathematics: reward 1 when the last `\boxed{}` equals the reference, 0 otherwise. No reward for format.

An answer is taken apart (`structure`), its parts are compared exactly (`atoms`, `surds`), in microseconds. What is algebra
is read as a whole or not at all (`formula`) and compared by its values (`algebra`), within milliseconds; integrals, infinite
sums and limits need SymPy, which may hang, so algebra is done in a process that can be killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards import algebra
from megatron_ring.rewards.agreement import answers_agree
from megatron_ring.rewards.atoms import settle, strip_preamble
from megatron_ring.rewards.boxed import last_boxed, marked_answer
from megatron_ring.rewards.choice import choice_agrees, choice_differs
from megatron_ring.rewards.currency import currencies_differ
from megatron_ring.rewards.exact import numbers_agree, parse_number
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.normalise import clean, defines_macros, nesting, normalise
from megatron_ring.rewards.structure import parse_answer

MAX_ANSWER_CHARACTERS = 4096
MAX_NESTING = 100
NO_BOX = Reward(0.0, "no boxed answer")
CORRECT = Reward(1.0, "correct")


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
    """What is certain without algebra: no box, exact values, identical text, a choice. None for the rest."""
    given = last_boxed(request.response)
    if given is None:
        return NO_BOX
    reference = reference_text(request.answer)
    if isinstance(reference, Reward):
        return reference
    return quick_compare(given, reference)


MISSING = frozenset({"nan", "null", "<na>", "n/a", "#n/a"})  # how tables write that there is no value


def reference_text(answer: Any) -> str | Reward:
    """The reference as text, or the reward for a response whose reference is of no use."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return Reward(0.0, f"the reference answer must be text or a number, not {type(answer).__name__}")
    text = str(answer)
    boxed = last_boxed(text)
    text = (marked_answer(text) or text) if boxed is None else boxed
    if not clean(text):
        return Reward(0.0, "the reference answer is empty")
    if text.strip().lower() in MISSING:
        return Reward(0.0, f"the reference answer {text.strip()!r} stands for one that is missing")
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
    if given_text == reference_clean:
        return CORRECT
    if currencies_differ(reference, given):
        return differs(given, reference)
    given_number, reference_number = parse_number(given_text), parse_number(reference_clean)
    if given_number is not None and reference_number is not None:
        return CORRECT if numbers_agree(reference_number, given_number) else differs(given, reference)
    if choice_agrees(reference_clean, given_text):
        return CORRECT
    if choice_differs(reference_clean, given_text) or len(reference) > MAX_ANSWER_CHARACTERS:
        return differs(given, reference)
    if defines_macros(given):
        return Reward(0.0, "boxed answer defines macros or reads files")
    if nesting(given) > MAX_NESTING:
        return Reward(0.0, f"boxed answer nests brackets more than {MAX_NESTING} deep")
    agree = _agree(given, reference, _Judge(algebra=False))
    return None if agree is None else CORRECT if agree else differs(given, reference)


def compare(given: str, reference: str) -> Reward:
    """Compare two answers (contents of a box), with algebra where plain comparison does not decide."""
    decided = quick_compare(given, reference)
    if decided is not None:
        return decided
    judge = _Judge(algebra=True)
    if _agree(given, reference, judge):
        return CORRECT
    if judge.unread == "reference":
        return Reward(0.0, f"the reference answer {_short(reference)} cannot be read as a formula")
    if judge.unread:
        return Reward(0.0, f"the boxed answer {_short(given)} cannot be read as a formula")
    return differs(given, reference)


def prepare() -> None:
    """Load what nearly all algebra needs, so that the first answer is not charged for it."""
    compare("x+1", "1+x")


def differs(given: str, reference: str) -> Reward:
    """The reward for a wrong answer."""
    return Reward(0.0, f"boxed {_short(given)}, expected {_short(reference)}")


def _agree(given: str, reference: str, judge: _Judge) -> bool | None:
    wanted, got = parse_answer(normalise(reference)), parse_answer(strip_preamble(normalise(given)))
    return answers_agree(wanted, got, judge)


class _Judge:
    """Decides atoms: exactly where that takes no algebra, and with it where that is allowed.

    Attributes:
        unread: "reference" or "given" where one of the two was no formula known here.
    """

    def __init__(self, algebra: bool) -> None:
        self._algebra = algebra
        self.unread = ""

    def equal(self, reference: str, given: str) -> bool | None:
        settled = settle(reference, given)
        return settled if isinstance(settled, bool) else self._decide(lambda: algebra.agree(*settled))

    def same_family(self, reference: str, given: str, parameter: str) -> bool | None:
        if reference.replace(" ", "") == given.replace(" ", ""):
            return True
        return self._decide(lambda: algebra.same_family(reference, given, parameter))

    def rounds_to(self, exact: str, decimal: str) -> bool | None:
        number = parse_number(decimal)
        return False if number is None else self._decide(lambda: algebra.rounds_to(exact, number))

    def _decide(self, question: Callable[[], bool]) -> bool | None:
        if not self._algebra:
            return None
        try:
            return question()
        except RecursionError:
            return False
        except algebra.Unreadable as error:
            self.unread = self.unread or error.side
            return False


def _short(text: str) -> str:
    text = clean(text)
    written = repr(text[:81])
    return written if len(written) <= 82 else written[:78] + "...'"
