"""Metrics against brute force over all subsets; the CodeElo rating against the expectation it inverts."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.benchmarks import codeelo
from megatron_ring.benchmarks.compare import compare, mcnemar
from megatron_ring.benchmarks.metrics import (
    consensus,
    g_pass_at_k,
    mean_and_error,
    mean_g_pass_at_k,
    pass_at_k,
    powers_of_two,
    summarize,
)
from megatron_ring.errors import UserError
from megatron_ring.rewards.assignment import best_sum

right_or_wrong = st.lists(st.booleans(), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(right_or_wrong, st.data())
def test_pass_and_g_pass_are_means_over_all_subsets(results: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(results)))
    tau = data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.75, 1.0]))
    drawn = [sum(subset) for subset in itertools.combinations(results, k)]
    n, correct = len(results), sum(results)
    assert pass_at_k(n, correct, k) == pytest.approx(sum(count > 0 for count in drawn) / len(drawn))
    least = max(1, math.ceil(Fraction(str(tau)) * k))
    assert g_pass_at_k(n, correct, k, tau) == pytest.approx(sum(count >= least for count in drawn) / len(drawn))
    levels = range(math.ceil(k / 2) + 1, k + 1)
    brute = 2 / k * sum(sum(count >= level for count in drawn) / len(drawn) for level in levels)
    assert mean_g_pass_at_k(n, correct, k) == pytest.approx(brute)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=6), st.sampled_from(["1", "2"]))
def test_consensus_is_the_mean_over_votes_with_ties_broken_at_random(answers: list[str | None], gold: str) -> None:
    scores = [float(answer == gold) for answer in answers]
    named = [answer for answer in answers if answer is not None]
    # Every order of the voters is as likely; the first of those that lead wins.
    wins = [float(max(order, key=order.count) == gold) for order in itertools.permutations(named)] if named else [0.0]
    leaders = {answer for answer in named if named.count(answer) == max(map(named.count, named))}
    expected = float(gold in leaders) / len(leaders) if leaders else 0.0
    assert consensus(answers, scores) == pytest.approx(expected)
    if len(leaders) == 1:
        assert expected == sum(wins) / len(wins)


def test_equal_answers_that_are_written_otherwise_vote_together() -> None:
    def same(a: str, b: str) -> bool:
        return {a, b} == {"1/2", "0.5"}

    assert consensus(["1/2", "0.5", "3", "3", "0.5"], [1, 1, 0, 0, 1], same) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=2, max_size=8))
def test_the_standard_error_is_of_problems(groups: list[list[float]]) -> None:
    mean, error = mean_and_error(groups)
    means = [sum(group) / len(group) for group in groups]
    assert mean == pytest.approx(sum(means) / len(means)) and error is not None
    assert error**2 * len(means) * (len(means) - 1) == pytest.approx(sum((m - mean) ** 2 for m in means), abs=1e-9)


def test_summary_and_its_edges() -> None:
    assert powers_of_two(6) == [1, 2, 4, 6] and powers_of_two(1) == [1]
    found = summarize([[1, 0], [1, 1]], [["a", "b"], ["c", "c"]])
    assert found["score"] == 0.75 and found["pass_at_k"] == {"1": 0.75, "2": 1.0} and found["cons_at_n"] == 0.75
    assert found["g_pass"]["1.0"] == 0.5
    assert mean_and_error([[1.0]]) == (1.0, None)
    with pytest.raises(ValueError, match="no scores"):
        mean_and_error([])
    with pytest.raises(ValueError, match="k 3"):
        pass_at_k(2, 1, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_the_assignment_is_the_best_of_all(rows: int, columns: int, data: st.DataObject) -> None:
    table = [[data.draw(st.integers(0, 9)) / 4 for _ in range(columns)] for _ in range(rows)]
    wide = table if rows <= columns else [list(column) for column in zip(*table, strict=True)]
    places = itertools.permutations(range(len(wide[0])), len(wide))
    assert best_sum(table) == pytest.approx(max(sum(wide[i][j] for i, j in enumerate(place)) for place in places))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3500), min_size=1, max_size=30), st.integers(-500, 4500))
def test_the_rating_inverts_the_expected_rank(others: list[int], rating: int) -> None:
    ratings = [float(other) for other in others]
    brute = 1 + sum(10 ** (other / 400) / (10 ** (rating / 400) + 10 ** (other / 400)) for other in ratings)
    assert codeelo.expected_rank(rating, ratings) == pytest.approx(brute)
    found = codeelo.rating_of_rank(brute, ratings)
    assert codeelo.expected_rank(found, ratings) == pytest.approx(brute, abs=1e-3)


def contest(points: bool = True) -> dict[str, Any]:
    def row(handles: list[str], score: float, penalty: int = 0) -> dict[str, Any]:
        return {"party": {"members": [{"handle": handle} for handle in handles]}, "points": score, "penalty": penalty}

    rows = [row(["a"], 900), row(["b"], 500), row(["c"], 0), row(["t1", "t2"], 9999), row(["unrated"], 5000)]
    changes = [{"handle": handle, "oldRating": old} for handle, old in (("a", 1800), ("b", 1400), ("c", 1000), ("gone", 1))]
    problems = [{"index": "A", "points": 500.0}, {"index": "B", "points": 1000.0}]
    if not points:
        rows, problems = [row(["a"], 2, 40), row(["b"], 1, 5), row(["c"], 0)], [{"index": "A"}, {"index": "B"}]
    return {"standings": {"problems": problems, "rows": rows}, "ratingChanges": changes}


def test_a_contest_is_rated_by_its_rank_among_those_in_both_lists() -> None:
    others = [1800.0, 1400.0, 1000.0]

    def rated(rank: float) -> float:
        return codeelo.rating_of_rank(rank, others)

    assert codeelo.contest_rating(contest(), {"A": [True]}) == rated(2)  # 500 beats 0, equals 500
    assert codeelo.contest_rating(contest(), {"A": [False, True]}) == rated(3)  # 450
    assert codeelo.contest_rating(contest(), {"B": [True], "A": [False]}) == rated(1)
    assert codeelo.contest_rating(contest(False), {"A": [True]}) == rated(2)  # fewer minutes than b
    assert codeelo.contest_rating(contest(False), {"A": [False, True]}) == rated(3)  # 10 minutes more
    with pytest.raises(UserError, match="not a contest's standings"):
        codeelo.contest_rating({"standings": {}}, {})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(-5, 55))
def test_the_percentile_is_the_share_below(ratings: list[int], rating: int) -> None:
    below = sum(other < rating for other in ratings)
    assert codeelo.percentile(rating, sorted(ratings)) == pytest.approx(100 * below / len(ratings))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10))
def test_mcnemar_is_the_binomial_test(gained: int, lost: int) -> None:
    flips = list(itertools.product([0, 1], repeat=min(gained + lost, 12)))
    if gained + lost <= 12:
        extreme = sum(min(sum(flip), len(flip) - sum(flip)) <= min(gained, lost) for flip in flips) / len(flips)
        assert mcnemar(gained, lost) == pytest.approx(extreme)


def test_comparison() -> None:
    first = {str(i): [0.0] for i in range(20)} | {"only": [1.0]}
    second = {str(i): [float(i < 10)] for i in range(20)}
    found = compare(first, second)
    assert (found.problems, found.gained, found.lost, found.second) == (20, 10, 0, 0.5)
    assert 0.2 < found.low < 0.5 < found.high < 0.8 and found.p_value == pytest.approx(2 / 1024)
    with pytest.raises(UserError, match="share no problem"):
        compare({"a": [1.0]}, {"b": [1.0]})
