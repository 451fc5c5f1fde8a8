from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.rl.budget import BudgetSelection, select_budget


def token_by_token(lengths: list[int], budget: int) -> list[int]:
    trained = [0] * len(lengths)
    count = 0
    for index, length in enumerate(lengths):
        for _ in range(length):
            if count < budget:
                trained[index] += 1
                count += 1
    return trained


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 400))
def test_matches_a_walk_over_single_tokens(lengths: list[int], budget: int) -> None:
    selection = select_budget(lengths, budget)
    assert selection.trained == token_by_token(lengths, budget)
    assert selection.selected_tokens == sum(selection.trained) == min(budget, sum(lengths))
    assert selection.reached == (sum(lengths) >= budget)
    assert selection.shortfall == max(0, budget - sum(lengths))
    if selection.reached:
        last = max(index for index, kept in enumerate(selection.trained) if kept)
        assert sum(lengths[:last]) < budget <= sum(lengths[: last + 1])


def test_the_last_response_is_cut() -> None:
    assert select_budget([3, 4, 5], 5) == BudgetSelection([3, 2, 0], 5, True, 0)


def test_a_budget_met_exactly_cuts_nothing() -> None:
    assert select_budget([3, 4, 5], 7) == BudgetSelection([3, 4, 0], 7, True, 0)


def test_too_few_tokens_are_all_taken_and_reported() -> None:
    assert select_budget([1, 1], 5) == BudgetSelection([1, 1], 2, False, 3)
    assert select_budget([], 5) == BudgetSelection([], 0, False, 5)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="budget is 0"):
        select_budget([1], 0)
    with pytest.raises(ValueError, match="response 1"):
        select_budget([1, -1], 3)
