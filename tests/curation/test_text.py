"""Spellings that are the same and texts that are not."""

from __future__ import annotations

import pytest

from megatron_ring.curation.meaning import meaning
from megatron_ring.curation.text import latex_share, without_label, words

SAME = [
    ("What is $2+3$?", "what  is \\(2 + 3\\) ?"),
    (r"Find $\dfrac{1}{2}x$.", r"Find \frac{1}{2} x"),
    (r"Find $\frac12$", r"Find $\frac{1}{2}$"),
    ("x^{2} + 1", "x^2+1"),
    ("He paid 1,000 dollars", "He paid $1000 dollars."),
    ("Problem 12. What is 5 times 6?", "What is 5 times 6?"),
    ("3. (10 points) What is 5 times 6?", "What is 5 times 6?"),
    ("a ≤ b", r"a \leq b"),
    ("5 − 3", "5 - 3"),
    (r"$\left( x \right)$", "(x)"),
    ("a ten-sided die", "a ten sided die"),
]
OTHER = [
    ("What is 5!?", "What is 5?"),
    ("x^{2y}", "x^2 y"),
    (r"\frac{1}{23}", r"\frac{12}{3}"),
    ("x - 1", "x + 1"),
    ("0.5", "5"),
    (".5", "5"),
    ("f'(x)", "f(x)"),
    ("(2+3)*4", "2+3*4"),
    ("求 3 的值", "求 4 的值"),
    ("$x$ < 3", "$x$ > 3"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert words(one) == words(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_not_the_same(one: str, other: str) -> None:
    assert words(one) != words(other)


def test_meaning_is_numbers_and_turning_words() -> None:
    def fit(one: str, other: str) -> bool:
        first, second = meaning(words(one)), meaning(words(other))
        assert first.fits(second) == second.fits(first)
        return first.fits(second)

    assert fit("Tom has 3 apples", "Ann owns three pears") and fit("3.0 m", "3 m")
    assert not fit("Tom has 3 apples and 4 pears", "Tom has 4 apples and 3 pears")
    assert not fit("Find the largest of 3", "Find the smallest of 3")
    assert not fit("3 m", "30 m")
    assert not fit("How much more is it?", "How much is it?")
    assert not fit("How many hours are left?", "How many minutes are left?")
    assert not fit("Tom buys 3 pens", "Tom sells 3 pens") and fit("Tom buys 3 pens", "Tom gets 3 pens")
    assert fit("It took some time after 3 hours", "It took some time following 3 hours")


def test_labels() -> None:
    assert without_label("Problem 5. ") == "Problem 5. "  # nothing else is there
    assert without_label("3.5 apples") == "3.5 apples"
    assert without_label("【例1】求值") == "求值"


def test_share_of_latex() -> None:
    assert latex_share("plain words only") == 0
    assert latex_share("求下列函数的最大值") == 1
    assert latex_share(r"$\int_0^1 x^2 dx$") > 0.5
    assert latex_share("He pays $5. Then she pays $7.50, and they get $1,000 back") == 0
    assert latex_share("Let $5$ and $3x$ be given, and $7 + y$") > 0.3
