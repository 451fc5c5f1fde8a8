"""Responses labelled by hand for our own kinds of instruction: (id, kwargs, followed, not followed)."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.instructions import CHECKS, score

LABELLED: list[tuple[str, dict[str, Any] | None, list[str], list[str]]] = [
    (
        "ring:bullet_count_range",
        {"minimum": 2, "maximum": 3},
        ["* a\n* b", "- a\r\n- b\r\n* c", "text\n  - a\n  - b"],
        ["* a", "- a\n- b\n- c\n- d", "1. a\n2. b", "plain"],
    ),
    (
        "ring:word_count_range",
        {"minimum": 2, "maximum": 3},
        ["one two", "un été là", "don't", "a\r\nb\r\nc"],
        ["one", "one two three four", "!!!", "it's a-b"],
    ),
    (
        "ring:no_repeated_words",
        None,
        ["one two one", "ha-ha", "1.1 1 1", "the then", "it’s it"],
        ["the the end", "The\r\nthe", "bye, bye", "Été été", "so. So", "**a** a"],
    ),
    (
        "ring:sentences_start_with",
        {"letter": "S"},
        ["She sang. So did I.", "**Some** day. “Soon!” she said.", "so", "- Sun.\n- still"],
        ["She sang. He did.", "Ask.", "...", "Ś", "(A) s. So."],
    ),
    (
        "ring:palindrome",
        {"num_palindromes": 2, "min_letters": 4},
        ["Noon and level", "NOON, Anna", "été racecar деед noon"],
        ["noon noon Noon", "mom dad", "level", "aaaa bbbb", "1221 3443 noon"],
    ),
    (
        "ring:alphabetical_list",
        {"min_items": 3},
        ["- apple\n- Bear\n- cat", "1. a\n2. a\n3. b", "* **Ann**: x\r\n* Bob\r\n* _cy_", "Intro\n- a\n- b\n- c\nEnd"],
        ["- b\n- a\n- c", "- a\n- b", "apple\nbear\ncat", "- a\n1. b\n- c\n- d", "1. c\n2. b\n3. a"],
    ),
    (
        "ring:numbered_list",
        {"num_items": 2},
        ["1. a\n2. b", "Here:\n 1) a\r\n 2) b\r\nend", "1. a\n   more 3. x\n2. b"],
        ["1. a", "1. a\n1. b", "2. a\n1. b", "1. a\n2. b\n3. c", "1.a\n2.b", "- a\n- b"],
    ),
    (
        "ring:unique_words",
        {"num_words": 3},
        ["a b c", "A b\r\nc a", "été hiver 3"],
        ["a A a b", "STRASSE straße b", "...", "one two"],
    ),
    (
        "ring:sentence_length",
        {"max_words": 3},
        ["One two three. Four five.", "你好。今天。", "Dr. Wu left."],
        ["One two three four.", "a b\nc d", "Ok. This one is long."],
    ),
    ("ring:line_count", {"num_lines": 2}, ["a\nb", "a\r\n\r\nb\r\n", "a\r b"], ["a", "a\nb\nc", "a b", "a\u2028b"]),
]
PAIRS = [
    (name, kwargs, response, value)
    for name, kwargs, followed, violated in LABELLED
    for value, responses in ((1.0, followed), (0.0, violated))
    for response in responses
]


@pytest.mark.parametrize(
    ("name", "kwargs", "response", "value"), PAIRS, ids=[f"{p[0]}-{p[3]:g}-{p[2][:20]!a}" for p in PAIRS]
)
def test_verdict(name: str, kwargs: dict[str, Any] | None, response: str, value: float) -> None:
    reward = score(ScoreRequest("instructions", None, response, {"instruction_id_list": [name], "kwargs": [kwargs]}))
    assert reward.value == value, reward.reason


def test_every_kind_of_ours_is_labelled() -> None:
    assert {name for name in CHECKS if name.startswith("ring:")} == {entry[0] for entry in LABELLED}
