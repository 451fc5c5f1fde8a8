"""Cases that public reports and attacks found, one of each kind, scored as a run scores them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.rewards import RewardPool, ScoreRequest
from megatron_ring.rewards.instructions.keywords import ForbiddenWords, forbidden_words
from megatron_ring.rewards.sandbox import bwrap

ROWS = [json.loads(line) for line in (Path(__file__).parent / "labelled/reported.jsonl").read_text("utf-8").splitlines()]


def test_all_of_them() -> None:
    rows = [row for row in ROWS if row["domain"] != "code" or bwrap.find_problem() is None]
    with RewardPool(workers=1, time_limit=60.0) as pool:
        rewards = pool.score(ScoreRequest(row["domain"], row["prompt"], row["response"], row["answer"]) for row in rows)
    wrong = [
        (row["kind"], reward.reason) for row, reward in zip(rows, rewards, strict=True) if reward.value != row["reward"]
    ]
    assert wrong == []
    assert {row["domain"] for row in ROWS} == {"math", "science", "code", "instructions"}


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("the ro\u200bck", False),  # an unseen space
        ("the r\u00adock", False),  # a soft hyphen
        ("the r\u043eck", False),  # a Cyrillic o
        ("the R\u041eCK", False),
        ("the \uff52\uff4f\uff43\uff4b", False),  # full width
        ("the \U0001d42b\U0001d428\U0001d41c\U0001d424", False),  # bold
        ("the r\u0336o\u0336c\u0336k", False),  # struck out
        ("the \u0280\u1d0f\u1d04\u1d0b", False),  # small capitals
        ("the rocket", True),
        ("r\u00f6ck", True),  # another letter
        ("\u043a\u0430\u043c\u0435\u043d\u044c", True),  # Russian for a stone
    ],
)
def test_a_forbidden_word_cannot_hide(text: str, allowed: bool) -> None:
    assert forbidden_words(text, ForbiddenWords(("rock",))).followed is allowed


@pytest.mark.parametrize(
    ("word", "text", "allowed"),
    [
        ("ice cream", "I like ice  cream", False),
        ("ice cream", "I like ice\ncream", False),
        ("don't", "I don\u2019t know", False),
        ("ice-cream", "ice\u2011cream", False),
        ("\u4e2d\u56fd", "\u6211\u7231\u4e2d\u56fd\u4eba", False),  # Chinese has no spaces between words
        ("\u30ab\u30ca", "\u30ab\u30ca\u8a9e", False),
        ("ice cream", "ice and cream", True),
        ("\u4e2d\u56fd", "\u4e2d\u95f4", True),
    ],
)
def test_forbidden_words_as_they_are_written(word: str, text: str, allowed: bool) -> None:
    assert forbidden_words(text, ForbiddenWords((word,))).followed is allowed
