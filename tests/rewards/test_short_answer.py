"""Short answers against oracles: SQuAD's normalisation as published, brute-force F1, assignments by trying all."""

from __future__ import annotations

import itertools
import re
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards.answer_text import MAX_ANSWER_CHARACTERS, said_answer, tokens
from megatron_ring.rewards.interface import ScoreRequest
from megatron_ring.rewards.registry import VERIFIERS
from megatron_ring.rewards.scorer import check_answers
from megatron_ring.rewards.short_answer import span_f1, token_f1

WORDS = st.lists(
    st.sampled_from(["the", "a", "red", "box", "Rome", "of", "U.S.", "don't", "Oslo,", '"so"', "(now)"]), max_size=8
)


def value(domain: str, response: str, answer: Any) -> float:
    return VERIFIERS[domain].score(ScoreRequest(domain, None, response, answer)).value


def squad(text: str) -> list[str]:
    """SQuAD v1.1's steps, one after the other, for text without numbers, hyphens and articles alone."""
    lowered = "".join(one for one in text.lower() if one not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", lowered).split()


@settings(max_examples=60, deadline=None)
@given(WORDS)
def test_words_are_those_of_squad(words: list[str]) -> None:
    text = " ".join(words)
    assert not squad(text) or tokens(text) == squad(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc1"), max_size=6), st.lists(st.sampled_from("abc1"), max_size=6))
def test_f1_is_that_of_the_best_pairing_of_tokens(wanted: list[str], got: list[str]) -> None:
    """By removing tokens one at a time, and precision and recall apart."""
    left, hits = list(got), []
    for token in wanted:
        if token in left:
            left.remove(token)
            hits.append(token)
    if not hits or ("1" in wanted and "1" not in hits):
        expected = 0.0
    else:
        precision, recall = len(hits) / len(got), len(hits) / len(wanted)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(wanted, got) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(*[st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3), min_size=1, max_size=4)] * 2)
def test_spans_are_assigned_as_well_as_can_be(gold: list[list[str]], got: list[list[str]]) -> None:
    small, large = sorted((gold, got), key=len)
    best = max(
        sum(token_f1(one, other) for one, other in zip(small, chosen, strict=True))
        for chosen in itertools.permutations(large, len(small))
    )
    assert span_f1(gold, got) == pytest.approx(best / max(len(gold), len(got)))


@pytest.mark.parametrize(
    ("response", "answer", "exact", "f1"),
    [
        ("Answer: the Eiffel Tower", "Eiffel tower", 1, 1),
        ("<think>Rome?</think>**Answer:** Paris.", ["Lutetia", "Paris"], 1, 1),
        ("so \\boxed{1,000}", 1000, 1, 1),
        ("Answer: 35", "3.5", 0, 0),
        ("Answer: 1030", "10:30", 0, 0),
        ("Answer: -5", 5, 0, 0),
        ("Answer: C", "C++", 0, 0),
        ("Answer: A", "A", 1, 1),
        ("答案：北京大学。", "北京 大学", 1, 1),
        ("答案是北京", "北京大学", 0, 2 / 3),
        ("Paris", {"text": ["Paris"], "answer_start": [3]}, 1, 1),
        ("Answer: Lutetia", {"value": "Paris", "aliases": ["Lutetia"], "type": "x"}, 1, 1),
        ("Answer: Oslo | Rome", {"spans": ["Rome", "Oslo"], "types": ["span", "span"]}, 1, 1),
        ("Answer: 12 men", "12 women", 0, 0.5),
        ("Answer: 13 women", "12 women", 0, 0),
        ("Answer: Oslo | Rome", [["Rome", "Oslo"]], 1, 1),
        ("Answer: Oslo", [["Rome", "Oslo"]], 0, 0.5),
        ("Answer: Oslo | Rome | Bern", [["Rome", "Oslo"]], 0, 2 / 3),
        ("Answer: yes", "no", 0, 0),
        ("Answer: wrong\nOn reflection, the answer is right", "right", 1, 1),
        ("<think>Answer: Paris", "Paris", 0, 0),
        ("", "Paris", 0, 0),
        ("Answer:\nParis", "Paris", 1, 1),
    ],
)
def test_answers(response: str, answer: Any, exact: float, f1: float) -> None:
    assert value("qa/exact", response, answer) == exact
    assert value("qa/f1", response, answer) == pytest.approx(f1)


def test_stuffing_loses() -> None:
    """Naming every candidate, saying the right one often, or separating them by bars."""
    cities = ["Rome", "Oslo", "Lima", "Bern", "Cairo", "Delhi", "Paris", "Quito"]
    for written in (" ".join(cities), " or ".join(cities), " | ".join(cities), "Paris " * 8):
        assert value("qa/exact", f"Answer: {written}", "Paris") == 0
        assert value("qa/f1", f"Answer: {written}", "Paris") <= 2 / 9
    assert value("qa/f1", "Answer: Rome\nAnswer: Paris", "Rome") == 0  # the last one counts
    assert value("qa/f1", "Answer: Paris\nAnswer: Rome", ["Paris"]) == 0


PIECES = ["Answer:", "answer is", "\\boxed{", "}", "<think>", "</think>", "|", "\n", " ", "Paris", "paris", "2", "x", "-",
          "，", "\x00", "\ud800", "**", "答案：", "é"]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_response_breaks_it_and_what_is_exact_has_all_of_f1(response: str) -> None:
    answer = ["Paris", ["2", "x"]]
    exact, f1 = (value(domain, response, answer) for domain in ("qa/exact", "qa/f1"))
    assert exact in (0, 1) and exact <= f1 <= 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "is empty"), (" !? ", "is empty"), ([], "1 to 64 answers"), (["x", ""], "is empty"), ([[]], "1 to 32 spans"),
        (None, "text or a number, not NoneType"), (True, "not bool"), ({"answers": {"x": 1}}, "an object with 'answers' or"),
        ({"x": 1}, "an object with 'answers' or 'text'"),
        ({"text": []}, "1 to 64 answers"), ([["a", ["b"]]], "not list"), (["a"] * 65, "not 65"),
        (float("nan"), "stands for one that is missing"), ("null", "stands for one that is missing"),
    ],
)  # fmt: skip
def test_references_that_nothing_could_match_are_refused(answer: Any, said: str) -> None:
    for domain in ("qa/exact", "qa/f1"):
        with pytest.raises(UserError, match="p.jsonl:3.*" + re.escape(said)):
            check_answers([("p.jsonl:3", domain, answer)], {})
        assert said in VERIFIERS[domain].score(ScoreRequest(domain, None, "Answer: x", answer)).reason


def test_long_and_hostile_texts_take_no_time() -> None:
    for text in ("answer" * 40_000, "Answer: " * 30_000, "\\boxed{" * 30_000, "- " * 100_000, "|" * 100_000, "1," * 100_000,
                 "答案" * 60_000, "-" * 200_000, "Answer:" + " " * 200_000, "*_" * 100_000):  # fmt: skip
        assert value("qa/f1", text, "Paris") == 0
    assert said_answer("x" * (MAX_ANSWER_CHARACTERS + 1)) is None
