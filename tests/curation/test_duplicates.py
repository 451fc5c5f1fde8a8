"""Duplicates: copies go, one stays by a stated rule, and problems with other numbers are other problems."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.curation.near import _Known, buckets, character_grams, jaccard, word_grams
from megatron_ring.curation.options import Exact, Near
from megatron_ring.curation.text import words
from megatron_ring.curation.union_find import UnionFind
from tests.curation.conftest import Curated, problem

STORY = (
    "Weng works on a large farm near the river and picks baskets of ripe peaches for 12 dollars an hour during the warm "
    "summer. Yesterday morning the old farmer asked whether somebody could stay and Weng worked for 50 minutes until the "
    "rain began. How much did Weng earn?"
)


def test_exact_copies(curated: Callable[..., Curated]) -> None:
    rows = [
        problem("What is $\\frac{1}{2} + 3$?"),
        problem("Problem 4. What is \\( \\dfrac12+3 \\)?"),
        problem("What is $\\frac{1}{2} + 4$?"),
        problem("what is  1,000 plus 3 ?"),
        problem("What is 1000 plus 3?"),
    ]
    found = curated(rows, Exact())
    assert found.reasons == {"s-2": "exact_duplicate", "s-5": "exact_duplicate"}
    assert found.ledger[0]["evidence"] == "a copy of s-1"


@pytest.mark.parametrize(("prefer", "stays"), [("first", "s-1"), ("solution", "s-2"), ("longest", "s-3")])
def test_which_copy_stays(prefer: str, stays: str, curated: Callable[..., Curated]) -> None:
    rows = [
        problem("What is 4 + 5?"),
        problem("What is 4+5?", solutions=[{"text": "9", "language": None}]),
        problem("What is    4 + 5  ?"),
    ]
    assert [row["id"] for row in curated(rows, Exact(prefer=prefer)).kept] == [stays]  # type: ignore[arg-type]


def test_copies_that_contradict(curated: Callable[..., Curated]) -> None:
    rows = [problem("What is 4 + 5?", "9"), problem("What is 4+5?", "10"), problem("Half?", "1/2"), problem("half", "0.5")]
    found = curated(rows, Exact())
    assert found.reasons == {"s-1": "conflicting_answers", "s-2": "conflicting_answers", "s-4": "exact_duplicate"}
    assert "s-1 answers '9', s-2 answers '10'" in found.ledger[0]["evidence"]
    assert [row["id"] for row in curated(rows, Exact(conflicts="keep")).kept] == ["s-1", "s-3"]


def test_near_copies(curated: Callable[..., Curated]) -> None:
    rows = [
        problem(STORY),
        problem(STORY.replace("peaches", "apples")),
        problem(STORY.replace("12", "15")),
        problem(STORY.replace("12 dollars", "twelve dollars")),
        problem(STORY.replace("How much did Weng earn?", "How much less did Weng earn?")),
        problem("A train leaves the station with 40 passengers and 12 get off at the next stop. How many are left?"),
    ]
    found = curated(rows, Near(threshold=0.7))
    assert found.reasons == {"s-2": "near_duplicate", "s-4": "near_duplicate"}
    assert re.search(r"similarity 0\.[789]\d+: a near copy of s-1$", found.ledger[0]["evidence"])


def test_latex_and_chinese_are_compared_by_characters(curated: Callable[..., Curated]) -> None:
    formula = (
        "Let $a_1, a_2, \\ldots$ satisfy $a_{n+1} = \\frac{a_n + 3}{\\sqrt{a_n^2 + 7}}$ and $a_1 = 5$. Find $\\lim a_n$ {}."
    )
    chinese = (
        "小明家里有一个很大的果园，里面种着许多苹果树和梨树，每棵苹果树能结三十个苹果，"
        "每棵梨树能结二十个梨，问一共有多少个水果{}"
    )
    rows = [problem(text.replace("{}", more)) for text in (formula, chinese) for more in ("now", "today")]
    found = curated(rows, Near(threshold=0.6))
    assert found.reasons == {"s-2": "near_duplicate", "s-4": "near_duplicate"}


def test_families_of_templates_stay(curated: Callable[..., Curated]) -> None:
    rng = random.Random(1)
    texts = {re.sub(r"\d+", lambda _: str(rng.randint(2, 999)), STORY) for _ in range(200)}
    found = curated([problem(text) for text in sorted(texts)], Exact(), Near(threshold=0.5))
    assert found.reasons == {} and len(found.kept) == len(texts) > 190


def test_a_row_goes_only_where_one_that_stays_is_similar(curated: Callable[..., Curated]) -> None:
    """A chain: each is similar to the next, the ends are not."""
    tokens = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    rows = [problem(" ".join(tokens[start : start + 40])) for start in (0, 3, 6, 9, 12)]
    found = curated(rows, Near(threshold=0.75, word_bands=40, word_rows=2))
    texts = {f"s-{number}": row["prompt"] for number, row in enumerate(rows, start=1)}
    grams = {name: frozenset(word_grams(words(text), 5)) for name, text in texts.items()}
    kept = {row["id"] for row in found.kept}
    assert len(kept) > 1 and found.reasons
    for name in found.reasons:
        assert max(jaccard(grams[name], grams[other]) for other in kept) >= 0.75


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_union_find(pairs: list[tuple[int, int]]) -> None:
    sets, labels = UnionFind(20), list(range(20))
    for one, other in pairs:
        sets.union(one, other)
        low, high = sorted((labels[one], labels[other]))
        labels = [low if label == high else label for label in labels]
    assert sets.roots().tolist() == [sets.find(i) for i in range(20)]
    assert all((sets.find(i) == sets.find(j)) == (labels[i] == labels[j]) for i in range(20) for j in range(20))
    wanted = [[i for i in range(20) if labels[i] == label] for label in sorted(set(labels))]
    assert sorted(sets.groups()) == [group for group in wanted if len(group) > 1]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30))
def test_buckets(rows: list[tuple[int, int]]) -> None:
    values, names = np.array(rows, np.int64).reshape(-1, 2).T
    found = list(buckets(values.astype(np.uint64), names))
    wanted = [[place for place, (value, _) in enumerate(rows) if value == each] for each in range(1, 6)]
    assert sorted(found) == sorted(bucket for bucket in wanted if len({rows[place][1] for place in bucket}) > 1)


@given(st.data())
def test_similarities_are_found_again(data: st.DataObject) -> None:
    place = st.integers(0, 8)
    values = data.draw(st.dictionaries(st.tuples(place, place).filter(lambda pair: pair[0] < pair[1]), st.floats(0, 1)))
    known = _Known(9, np.array(list(values), np.int64).reshape(-1, 2), np.array(list(values.values())))
    for one in range(9):
        for other in range(9):
            assert known.find(one, other) == values.get((min(one, other), max(one, other)))


def test_copies_among_problems_that_look_alike(curated: Callable[..., Curated]) -> None:
    days = ("Monday", "Tuesday", "Friday")
    families = [STORY.replace("Yesterday", f"Last {day}") for day in days]
    rows = [problem(text) for text in (*families, *(text.replace("peaches", "apples") for text in families))]
    assert curated(rows, Near()).reasons == dict.fromkeys(("s-4", "s-5", "s-6"), "near_duplicate")


def test_short_texts_have_one_gram() -> None:
    assert word_grams(["a", "b"], 5) == ["a b"] and character_grams(["ab", "c"], 24) == ["ab c"]
