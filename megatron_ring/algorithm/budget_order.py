"""In which order responses fill the token budget. The report takes them as they come; the other orders are for study.

An order decides what is left out when a step holds more tokens than its budget; ties keep the order in which responses
came. All but `random_order` and `in_order` prefer some responses, and so bias the gradient towards them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class StepResponses:
    """What an order may look at, one value for each response of a step: tokens, advantage, prompt; and a seed."""

    lengths: Sequence[int]
    advantages: Sequence[float]
    groups: Sequence[int]
    seed: int


class BudgetOrder(Protocol):
    """A strategy: the responses' indices, each once, those that are to be trained first in front."""

    def __call__(self, responses: StepResponses) -> list[int]: ...


def in_order(responses: StepResponses) -> list[int]:
    """As they come: prompt by prompt (Ring-lite report)."""
    return list(range(len(responses.lengths)))


def random_order(responses: StepResponses) -> list[int]:
    """Shuffled; the same seed gives the same order."""
    order = in_order(responses)
    random.Random(responses.seed).shuffle(order)
    return order


def by_group(responses: StepResponses) -> list[int]:
    """The first response of every prompt, then every second one, and so on: no prompt is left out for another's sake."""
    seen: Counter[int] = Counter()
    turns = []
    for group in responses.groups:
        turns.append(seen[group])
        seen[group] += 1
    return sorted(in_order(responses), key=turns.__getitem__)


def by_advantage(responses: StepResponses) -> list[int]:
    """The largest |A| first; responses that teach nothing (A = 0) last."""
    return sorted(in_order(responses), key=lambda index: -abs(responses.advantages[index]))


def shortest_first(responses: StepResponses) -> list[int]:
    """Few tokens first: the most responses that fit the budget."""
    return sorted(in_order(responses), key=responses.lengths.__getitem__)


def longest_first(responses: StepResponses) -> list[int]:
    """Many tokens first."""
    return sorted(in_order(responses), key=lambda index: -responses.lengths[index])


ORDERS: dict[str, BudgetOrder] = {
    "in-order": in_order,
    "random": random_order,
    "by-group": by_group,
    "by-advantage": by_advantage,
    "shortest-first": shortest_first,
    "longest-first": longest_first,
}
