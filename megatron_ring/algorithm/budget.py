"""C3PO's token budget: every step trains on exactly the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BudgetSelection:
    """Which tokens of a step carry gradient.

    Attributes:
        trained: for each response, how many of its first tokens are trained (0: the response is not selected).
        selected_tokens: their sum, |Psi|.
        reached: whether the step held at least the budget; then `selected_tokens` equals it.
        shortfall: tokens missing to the budget, 0 when reached.
    """

    trained: list[int]
    selected_tokens: int
    reached: bool
    shortfall: int


def select_budget(lengths: Sequence[int], budget: int | None, order: Sequence[int] | None = None) -> BudgetSelection:
    """Select exactly Phi = `budget` tokens, one response after another, the last one cut (C3PO, Ring-lite report).

    Takes the first N responses of the order with sum_{j<N} |y_j| < Phi <= sum_{j<=N} |y_j|, and of the N-th only the tokens
    that are missing. Advantages are computed before this cut, from every response of a group. When the whole step is
    shorter than the budget everything is selected and `reached` is false.

    Args:
        lengths: response tokens of each response.
        budget: Phi in tokens, for the same set of responses (global or per rank is the caller's choice); None: everything is
            selected.
        order: the responses' indices, as a strategy of `budget_order` gives them; None: as they come, the report's way.

    Raises:
        ValueError: a budget below 1, a negative length, or an order that is not one of all responses.
    """
    budget = max(1, sum(lengths)) if budget is None else budget
    if budget < 1:
        raise ValueError(f"the token budget is {budget}, must be at least 1")
    order = range(len(lengths)) if order is None else order
    if sorted(order) != list(range(len(lengths))):
        raise ValueError(f"the order must name each of the {len(lengths)} responses once")
    trained = [0] * len(lengths)
    remaining = budget
    for index in order:
        if lengths[index] < 0:
            raise ValueError(f"response {index} has a length of {lengths[index]} tokens")
        trained[index] = min(lengths[index], remaining)
        remaining -= trained[index]
    return BudgetSelection(trained=trained, selected_tokens=budget - remaining, reached=remaining == 0, shortfall=remaining)
