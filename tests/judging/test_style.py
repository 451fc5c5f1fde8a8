"""The control for style against brute force, and on judges of which it is known what they like."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.judging.style import PENALTY, WORTH, controlled, difference, fit, style_of


def test_what_is_counted() -> None:
    text = "# One\n\n- a **b** c\n* d\n2. e __f__\n```\n# no\n- no\n```\n####### no\n"
    assert style_of(text)[1:] == (1, 3, 2) and style_of("ab, c中文 だ!") == (7, 0, 0, 0)
    assert difference("", "") == (0, 0, 0, 0) and difference("a b c", "a")[0] == pytest.approx(0.5)
    assert difference("# a", "b c") == pytest.approx((0.0, 0.5 / 1.5, 0, 0))
    assert difference("x - y", "p") == tuple(-value for value in difference("p", "x - y"))


def likelihood(rows: list[tuple[float, float, float]], strength: float, weight: float) -> float:
    total = -PENALTY / 2 * (strength**2 + weight**2)
    for feature, won, games in rows:
        chance = 1 / (1 + math.exp(-(strength + feature * weight)))
        total += won * math.log(chance) + (games - won) * math.log(1 - chance)
    return total


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 2), st.integers(0, 6), st.integers(2, 6)), min_size=4, max_size=9))
def test_the_fit_is_the_top_of_the_likelihood(drawn: list[tuple[float, int, int]]) -> None:
    """Found by halving steps over a grid, with nothing of the fit's own arithmetic."""
    rows = [(feature, min(won, games) + 0.5 * (won < games), float(games)) for feature, won, games in drawn]
    place, step = (0.0, 0.0), 4.0
    while step > 1e-6:
        around = [(place[0] + a * step, place[1] + b * step) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        best = max(around, key=lambda at: likelihood(rows, *at))
        place, step = best, step / 2 if best == place else step
    features, won, games = (np.array(column) for column in zip(*rows, strict=True))
    found = fit(np.column_stack([np.ones(len(rows)), features]), won, games)
    assert likelihood(rows, *found) >= likelihood(rows, *place) - 1e-7
    assert found == pytest.approx(place, abs=2e-3)


def judged(liking: float, quality: float, pairs: int = 400) -> dict[str, object]:
    """A judge whose odds for the answer are `quality` and `liking` times its length: the answers are the longer ones."""
    rng = random.Random(4)
    texts, verdicts = [], []
    for _ in range(pairs):
        ours, theirs = rng.randint(20, 60), rng.randint(5, 45)
        texts.append((" ".join(["w"] * ours), " ".join(["w"] * theirs)))
        odds = quality + liking * (ours - theirs) / (ours + theirs)
        wins = [rng.random() < 1 / (1 + math.exp(-odds)) for _ in range(2)]
        verdicts.append(("A>B" if wins[0] else "B>A", "B>A" if wins[1] else "A>B"))
    found = controlled(texts, verdicts)
    assert found is not None
    return {**found, "raw": sum((first == "A>B") + (second == "B>A") for first, second in verdicts) / (2 * pairs)}


def test_a_liking_for_length_is_taken_out() -> None:
    blind = judged(0.0, 1.0)
    assert blind["win_rate"] == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)
    assert blind["low"] < blind["win_rate"] < blind["high"] and abs(blind["weights"]["length"]) < 0.25  # type: ignore
    fond = judged(4.0, 0.0)
    assert fond["low"] < 0.5 < fond["high"] and fond["raw"] > 0.65  # type: ignore[operator]  # it wins by length alone
    assert fond["weights"]["length"] > 0.8 and fond["weights"]["bold"] == 0  # type: ignore[index]


def test_edges() -> None:
    pairs = [("long answer here", "x")] * 12
    assert controlled(pairs[:9], [("A>B", "B>A")] * 9) is None
    always = controlled(pairs, [("A>>B", "B>>A")] * 12)
    assert always is not None and 0.99 < always["win_rate"] < 1 and set(always["weights"].values()) == {0.0}
    tied = controlled(pairs, [("A=B", "A=B")] * 12)
    assert tied is not None and tied["win_rate"] == tied["low"] == tied["high"] == 0.5
    placed = controlled(pairs, [("A>B", "A>B")] * 12)  # a judge that likes the first place
    assert placed is not None and placed["win_rate"] == pytest.approx(0.5)
    assert WORTH["A>>B"] == (1.0, 3) and WORTH["B>>A"] == (0.0, 3)
