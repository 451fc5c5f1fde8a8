"""The parts of a composed reward: who scores one, what is asked first, and what its reward counts.

A part may have `rules`: verifiers that are asked before its own domain, in order. The first that decides gives the part its
reward, and the domain is not asked. So a judge is asked only where rules cannot tell:

    {"name": "right", "domain": "judge/reference", "answer": "value",
     "rules": [{"domain": "math", "answer": "value", "at_least": 1}]}

A rule decides where its reward is at least `at_least` or at most `at_most`; without both, where it is at least 1. A rule for
which the machine failed decides nothing. What the domain gives may be brought to the scale of other parts, which a reward
model's score needs:

    y = scale · (reward - shift), then 1 / (1 + exp(-y)) where "sigmoid" is true

The last is the probability, under the model of Bradley and Terry that reward models are trained by, that the response is
preferred to one of the score `shift`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards import format
from megatron_ring.rewards.batch import BATCH_SCORERS, reference_check
from megatron_ring.rewards.declared import check_entries, list_of, number_of, text_of
from megatron_ring.rewards.interface import MACHINE_FAILURE, Reward


@dataclass(frozen=True, slots=True)
class Source:
    """Who scores, and against what.

    Attributes:
        domain: names a verifier or batch scorer.
        key: which entry of the row's answer is its reference; None for the whole answer.
        constant: its reference for every row, in a tuple of one; empty where the row has it.
    """

    domain: str
    key: str | None = None
    constant: tuple[Any, ...] = ()

    def reference(self, domain: str, answer: Any) -> Any:
        """The reference, where `answer` is that of a row of `domain`. Raises `UserError` when the row lacks it."""
        if self.key is None:
            return self.constant[0] if self.constant else answer
        if not isinstance(answer, Mapping) or self.key not in answer:
            raise UserError(f"domain {domain!r}: the answer must be an object with the key {self.key!r}")
        return answer[self.key]


@dataclass(frozen=True, slots=True)
class Rule:
    """A verifier that is asked before a part's own domain."""

    source: Source
    at_least: float | None
    at_most: float | None

    def decides(self, reward: Reward) -> bool:
        """Whether its reward is the part's."""
        if MACHINE_FAILURE in reward.detail:
            return False
        enough = self.at_least is not None and reward.value >= self.at_least
        return enough or (self.at_most is not None and reward.value <= self.at_most)


@dataclass(frozen=True, slots=True)
class Scale:
    """What a reward counts, see the module."""

    shift: float = 0.0
    scale: float = 1.0
    sigmoid: bool = False

    def __call__(self, reward: float) -> float:
        value = self.scale * (reward - self.shift)
        if not self.sigmoid:
            return value
        small = math.exp(-abs(value))  # never beyond 1
        return 1.0 / (1.0 + small) if value >= 0 else small / (1.0 + small)


@dataclass(frozen=True, slots=True)
class Part:
    """The share of one verifier or batch scorer.

    Attributes:
        name: in logs, unlike that of any other part or gate.
        weight: at least 0; gates have none. A part of weight 0 is measured and never trained.
        rules: asked before, in order.
        scale: of what `source` gives, not of what a rule gives; None: as it is.
    """

    name: str
    source: Source
    weight: float = 1.0
    rules: tuple[Rule, ...] = ()
    scale: Scale | None = None


def read_part(entry: Any, weighted: bool) -> Part:
    """Check one parsed declaration of a part, or of a gate, which has no weight. Raises `UserError`, naming it."""
    what = "a part" if weighted else "a gate"
    of_parts = {"weight", "shift", "scale", "sigmoid"} if weighted else set()
    check_entries(entry, what, {"name", "domain"}, {"answer", "with", "rules"} | of_parts)
    name = text_of(entry, "name")
    try:
        source = _read_source(entry)
        rules = tuple(_read_rule(rule) for rule in list_of(entry.get("rules", []), "rules"))
        scale = _read_scale(entry) if entry.keys() & {"shift", "scale", "sigmoid"} else None
    except UserError as error:
        raise UserError(f"{what[2:]} {name!r}: {error}") from None
    return Part(name, source, number_of(entry, "weight", 1.0), rules, scale)


def _read_source(entry: dict[str, Any]) -> Source:
    domain = text_of(entry, "domain")
    if "answer" in entry and "with" in entry:
        raise UserError("has both 'answer' and 'with', keep one")
    key = text_of(entry, "answer") if "answer" in entry else None
    constant = (entry["with"],) if "with" in entry else ()
    found = reference_check(domain)
    if domain.startswith("format/") and key is None:
        constant = (format.read_options(domain, constant[0] if constant else {}),)
    elif constant and found is not None:
        found(constant[0])
    return Source(domain, key, constant)


def _read_rule(entry: Any) -> Rule:
    check_entries(entry, "a rule", {"domain"}, {"answer", "with", "at_least", "at_most"})
    anything = -math.inf
    at_least = number_of(entry, "at_least", 0.0, anything) if "at_least" in entry else None
    at_most = number_of(entry, "at_most", 0.0, anything) if "at_most" in entry else None
    if at_least is None and at_most is None:
        at_least = 1.0
    if at_least is not None and at_most is not None and at_most >= at_least:
        raise UserError(f"a rule decides always: 'at_most' {at_most:g} is not below 'at_least' {at_least:g}")
    source = _read_source(entry)
    if source.domain in BATCH_SCORERS:
        raise UserError(f"{source.domain!r} is no rule: a rule is a verifier, which is asked before any model is")
    return Rule(source, at_least, at_most)


def _read_scale(entry: dict[str, Any]) -> Scale:
    sigmoid = entry.get("sigmoid", False)
    if not isinstance(sigmoid, bool):
        raise UserError(f"'sigmoid' must be true or false, not {sigmoid!r}")
    return Scale(number_of(entry, "shift", 0.0, -math.inf), number_of(entry, "scale", 1.0), sigmoid)
