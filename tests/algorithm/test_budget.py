from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.algorithm.budget import BudgetSelection, select_budget
from megatron_ring.algorithm.budget_order import ORDERS, StepResponses
from megatron_ring.algorithm.budget_schedule import BudgetSchedule


def token_by_token(lengths: list[int], budget: int, order: list[int] | None = None) -> list[int]:
    trained = [0] * len(lengths)
    count = 0
    for index in range(len(lengths)) if order is None else order:
        for _ in range(lengths[index]):
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
    for order in ([0], [0, 0], [1, 2]):
        with pytest.raises(ValueError, match="each of the 2"):
            select_budget([1, 1], 3, order)


responses = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([-2.0, 0.0, 0.5, 2.0]), st.integers(0, 3)), max_size=20)


@given(responses, st.integers(1, 400), st.integers(0, 9), st.sampled_from(sorted(ORDERS)))
def test_every_order_fills_the_budget_exactly(
    items: list[tuple[int, float, int]], budget: int, seed: int, name: str
) -> None:
    lengths = [length for length, _, _ in items]
    step = StepResponses(lengths, [advantage for _, advantage, _ in items], [group for _, _, group in items], seed)
    order = ORDERS[name](step)
    assert order == ORDERS[name](step)
    selection = select_budget(lengths, budget, order)
    assert selection.trained == token_by_token(lengths, budget, order)
    assert selection.selected_tokens == min(budget, sum(lengths))
    assert sum(0 < kept < length for kept, length in zip(selection.trained, lengths, strict=True)) <= 1


def test_what_each_order_prefers() -> None:
    step = StepResponses([5, 3, 9, 3], [0.0, -2.0, 1.0, 2.0], [8, 8, 8, 4], seed=0)
    assert {name: order(step) for name, order in ORDERS.items() if name != "random"} == {
        "in-order": [0, 1, 2, 3],
        "by-group": [0, 3, 1, 2],
        "by-advantage": [1, 3, 2, 0],
        "shortest-first": [1, 3, 0, 2],
        "longest-first": [2, 0, 1, 3],
    }
    shuffled = {tuple(ORDERS["random"](StepResponses([1] * 4, [0.0] * 4, [0] * 4, seed))) for seed in range(299)}
    assert len(shuffled) == 24


def test_schedules_of_the_budget() -> None:
    constant, linear = BudgetSchedule("constant", 100, 300), BudgetSchedule("linear", 100, 300)
    assert [constant.tokens(step, 5) for step in range(5)] == [100] * 5
    assert [linear.tokens(step, 5) for step in range(6)] == [100, 150, 200, 250, 300, 300]
    assert linear.tokens(0, 1) == 100


def test_the_budget_grows_with_what_is_solved_and_resumes() -> None:
    schedule = BudgetSchedule("solve-rate", 100, 300)
    assert schedule.tokens(0, 9) == 100
    schedule.observe([1.0, 0.0, 0.5, 1.5])  # two of four reach 1
    assert schedule.solve_rate == pytest.approx(0.05) and schedule.tokens(1, 9) == 110
    again = BudgetSchedule("solve-rate", 100, 300)
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert again.before == (100, 300)
    spread = BudgetSchedule("solve-rate", 200, 600)
    spread.load_state_dict(schedule.state_dict())
    assert spread.before == (100, 300) and spread.tokens(1, 9) == 220
    spread.load_state_dict({"solve_rate": 0.0})
    assert spread.before == (200, 600)
    for _ in range(200):
        schedule.observe([1.0])
        again.observe([1.0])
    assert schedule.tokens(2, 9) == again.tokens(2, 9) == 300
    schedule.observe([0.0])
    assert schedule.tokens(3, 9) == 280
