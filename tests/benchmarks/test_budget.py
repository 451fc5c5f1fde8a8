"""The stopping rule against the integral that it stands for, and spending against a plain simulation of it."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.benchmarks.budget import Budget, Rule, Spending, at_equal_tokens
from megatron_ring.benchmarks.scoring import Outcome
from megatron_ring.benchmarks.votes import Votes, majority_certainty

Row = tuple[str | None, int]  # answer, tokens


def integral(first: int, second: int, low: Fraction) -> Fraction:
    """Of p^first (1-p)^second from `low` to 1, term by term."""
    powers = [(comb(second, j) * (-1) ** j, first + j + 1) for j in range(second + 1)]
    return sum((Fraction(sign, power) * (1 - low**power) for sign, power in powers), Fraction(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_certainty_is_the_mass_of_the_posterior_above_one_half(a: int, b: int) -> None:
    first, second = max(a, b), min(a, b)
    expected = integral(first, second, Fraction(1, 2)) / integral(first, second, Fraction(0))
    assert majority_certainty(first, second) == expected


def test_certainty_at_known_counts() -> None:
    """Four equal answers are the fewest that 0.95 takes, as in the paper; one that differs asks for seven."""
    assert [majority_certainty(n, 0) for n in (0, 3, 4)] == [Fraction(1, 2), Fraction(15, 16), Fraction(31, 32)]
    assert majority_certainty(6, 1) < 0.97 and majority_certainty(5, 1) < 0.95 < majority_certainty(6, 1)
    with pytest.raises(ValueError, match="first >= second"):
        majority_certainty(1, 2)


def test_silence_is_a_group_that_wins_nothing() -> None:
    votes = Votes()
    for _ in range(4):
        votes.add(None, 0.0)
    assert votes.certainty == Fraction(31, 32) and votes.value == 0
    votes.add("1", 1.0)
    assert votes.certainty == majority_certainty(4, 1) and votes.value == 1
    votes.add("2", None)  # no verdict: it votes, and is worth nothing
    assert votes.value == 0.5


def simulated(table: list[list[Row]], budget: Budget, rule: Rule) -> tuple[list[tuple[str, int]], list[float]]:
    """One response after another, everything counted anew each time: which count, and the value of each problem."""
    counted: list[tuple[int, int]] = []

    def answers(problem: int) -> list[str | None]:
        return [table[problem][i][0] for who, i in counted if who == problem]

    def value(problem: int) -> float:
        named = Counter(answer for answer in answers(problem) if answer is not None)
        leading = [answer for answer, count in named.items() if count == max(named.values())]
        return sum(answer == "right" for answer in leading) / len(leading) if leading else 0.0

    def wants(problem: int) -> bool:
        counts = sorted(Counter(answers(problem)).values(), reverse=True)
        top = [*counts, 0, 0][:2]
        mass = integral(top[0], top[1], Fraction(1, 2)) / integral(top[0], top[1], Fraction(0))
        return sum(counts) < budget.samples and not (rule == "adaptive" and mass > budget.confidence)

    while opened := [problem for problem in range(len(table)) if wants(problem)]:
        for problem in opened:
            number = len(answers(problem))
            solved = sum(map(value, range(len(table)))) / len(table)
            last = budget.tokens if budget.final_tokens is None else budget.final_tokens
            allowed = round(budget.tokens + solved * (last - budget.tokens))
            spent = sum(table[who][i][1] for who, i in counted)
            if spent + table[problem][number][1] > allowed:
                return [(f"p{who}", i) for who, i in counted], list(map(value, range(len(table))))
            counted.append((problem, number))
    return [(f"p{who}", i) for who, i in counted], list(map(value, range(len(table))))


def outcome(problem: int, number: int, row: Row) -> Outcome:
    score = float(row[0] == "right")
    return Outcome("b", f"p{problem}", number, score, row[0], False, row[0] is not None, "", row[1])


def spend(table: list[list[Row]], budget: Budget, rule: Rule) -> Spending:
    known = {(f"p{p}", i): outcome(p, i, row) for p, rows in enumerate(table) for i, row in enumerate(rows)}
    spending = Spending([f"p{p}" for p in range(len(table))], budget, rule)
    while wanted := spending.wanted():
        spending.take({key: known[key] for key in wanted})
    return spending


SAMPLES = 9
ROW = st.tuples(st.sampled_from(["right", "right", "wrong", "other", None]), st.integers(1, 30))
TABLES = st.lists(st.lists(ROW, min_size=SAMPLES, max_size=SAMPLES), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(TABLES, st.integers(1, 500), st.sampled_from([None, 50, 400]), st.sampled_from([0.5, 0.8, 0.95]))
def test_spending_is_what_a_plain_simulation_spends(
    table: list[list[Row]], tokens: int, more: int | None, confidence: float
) -> None:
    budget = Budget(tokens, None if more is None else tokens + more, confidence, SAMPLES)
    rules: tuple[Rule, ...] = ("uniform", "adaptive")
    for rule in rules:
        found = spend(table, budget, rule)
        keys, values = simulated(table, budget, rule)
        assert [(item.id, item.sample) for item in found.taken] == keys
        assert list(found.values.values()) == values and found.score == pytest.approx(sum(values) / len(values))
        assert found.spent <= budget.limit(found.score) if more is None else True
        said = found.describe()
        assert said["curve"][-1] == pytest.approx((found.spent, found.score))
        assert said["ended"] == "budget" or found.rule == "adaptive" or said["samples"]["least"] == SAMPLES
        if rule == "uniform":
            assert said["samples"]["most"] - said["samples"]["least"] <= 1


def test_the_rules_are_compared_where_both_have_spent_the_same() -> None:
    """Two problems agree at once, one wavers: the adaptive rule reaches its right majority with the same tokens."""
    sure: list[Row] = [("right", 10)] * 40
    wavering: list[Row] = [("wrong" if i % 3 == 0 else "right", 10) for i in range(40)]
    budget = Budget(150)
    first, second = (spend([sure, sure, wavering], budget, rule) for rule in ("uniform", "adaptive"))
    assert (first.describe()["samples"]["most"], second.describe()["samples"]["most"]) == (5, 7)
    found = at_equal_tokens(first, second)
    assert (found["tokens"], found["uniform"], found["adaptive"]) == (150, 1.0, 1.0)
    early = at_equal_tokens(spend([sure, sure, wavering], Budget(60), "uniform"), second)
    assert early["tokens"] == 60 and early["uniform"] == early["adaptive"] == pytest.approx(5 / 6)
    assert first.values_at(25) == {"p0": 1.0, "p1": 1.0, "p2": 0.0}


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    found = spend([[("right", 1)] * 600], Budget(10_000, samples=600), "uniform").describe()
    assert len(found["curve"]) <= 202 and found["curve"][0] == (0, 0.0) and found["curve"][-1] == (600, 1.0)
    assert found["ended"] == "every problem has enough" and found["unanswered"] == 0
