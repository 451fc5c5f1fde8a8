"""A step's trained tokens dealt to its updates, against a walk over single tokens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.algorithm.updates import Piece, equal_budgets, whole_responses


def token_by_token(trained: list[int], updates: int, order: list[int]) -> list[list[tuple[int, int]]]:
    """For each update its (response, token) pairs: the t-th of T tokens goes where its update's room is not used up."""
    tokens = [(index, token) for index in order for token in range(trained[index])]
    sizes = [len(tokens) // updates + (number < len(tokens) % updates) for number in range(updates)]
    parts = []
    for size in sizes:
        parts.append(tokens[:size])
        tokens = tokens[size:]
    assert not tokens
    return parts


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 5))
def test_equal_budgets_train_every_token_once(trained: list[int], updates: int, seed: int) -> None:
    order = list(range(len(trained)))
    random.Random(seed).shuffle(order)
    if sum(trained) < updates and updates > 1:
        with pytest.raises(ValueError, match="at least one token"):
            equal_budgets(trained, updates, order)
        return
    parts = equal_budgets(trained, updates, order)
    found = [[(piece.index, token) for piece in part for token in range(piece.begin, piece.end)] for part in parts]
    assert [sorted(tokens) for tokens in found] == [sorted(p) for p in token_by_token(trained, updates, order)]
    assert all([piece.index for piece in part] == sorted({piece.index for piece in part}) for part in parts)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 6))
def test_whole_responses_stay_whole_and_no_update_is_empty(trained: list[int], updates: int) -> None:
    count = sum(value > 0 for value in trained)
    if count < updates and updates > 1:
        with pytest.raises(ValueError, match="at least one response"):
            whole_responses(trained, updates)
        return
    parts = whole_responses(trained, updates)
    assert len(parts) == updates
    assert [piece for part in parts for piece in part] == [Piece(i, 0, n) for i, n in enumerate(trained) if n]
    if count:
        assert all(parts)


def test_a_border_cuts_a_response_of_a_budget_and_none_without() -> None:
    assert equal_budgets([3, 4, 5], 2) == [[Piece(0, 0, 3), Piece(1, 0, 3)], [Piece(1, 3, 4), Piece(2, 0, 5)]]
    assert equal_budgets([3, 4, 4], 2, [2, 0, 1]) == [[Piece(0, 0, 2), Piece(2, 0, 4)], [Piece(0, 2, 3), Piece(1, 0, 4)]]
    assert equal_budgets([9], 3) == [[Piece(0, 0, 3)], [Piece(0, 3, 6)], [Piece(0, 6, 9)]]
    assert whole_responses([3, 4, 5], 2) == [[Piece(0, 0, 3), Piece(1, 0, 4)], [Piece(2, 0, 5)]]
    assert whole_responses([100, 1, 1], 3) == [[Piece(0, 0, 100)], [Piece(1, 0, 1)], [Piece(2, 0, 1)]]
    assert whole_responses([1, 1, 100], 3) == [[Piece(0, 0, 1)], [Piece(1, 0, 1)], [Piece(2, 0, 100)]]
    assert whole_responses([2, 2, 2, 2], 2) == [[Piece(0, 0, 2), Piece(1, 0, 2)], [Piece(2, 0, 2), Piece(3, 0, 2)]]


def test_one_update_has_all() -> None:
    assert equal_budgets([2, 0, 3], 1, [2, 1, 0]) == whole_responses([2, 0, 3], 1) == [[Piece(0, 0, 2), Piece(2, 0, 3)]]
    assert equal_budgets([0], 1) == whole_responses([], 1) == [[]]
