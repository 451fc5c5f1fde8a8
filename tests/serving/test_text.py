"""Pieces of a stream make up the answer in one piece, however the text is cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.data.token_text import TokenText
from megatron_ring.serving.text import AnswerText, Splitter, read_call

PARTS = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"a": 1}}', " ",
                         "\n", "a", "<", "</th", "tool_call>", "é"])  # fmt: skip
TEXTS = st.lists(PARTS, max_size=12).map("".join)


def split(text: str, cuts: Sequence[int], thinking: bool, tools: bool) -> tuple[str, str, list[object]]:
    splitter, pieces = Splitter(thinking, tools), []
    ends = sorted({min(cut, len(text)) for cut in cuts})
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        pieces += splitter.feed(text[start:end], last=False)
    pieces += splitter.feed("", last=True)
    reasoning = "".join(piece.text for piece in pieces if piece.kind == "reasoning")
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    return reasoning, content, [piece.call for piece in pieces if piece.call]


@given(TEXTS, st.lists(st.integers(0, 80), max_size=20), st.booleans(), st.booleans())
def test_cuts_do_not_matter(text: str, cuts: list[int], thinking: bool, tools: bool) -> None:
    assert split(text, cuts, thinking, tools) == split(text, [], thinking, tools)


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": [1, "é"]}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "thinking", "tools", "expected"),
    [
        (" plain <think> text \n", False, True, ("", " plain <think> text \n", 0)),
        ("<think>\n a b \n</think>\n\n c\n", False, False, ("a b", "c\n", 0)),
        ("inside\n</think>\n\nout", True, False, ("inside", "out", 0)),
        ("never ends", True, False, ("never ends", "", 0)),
        ("<think></think>x", False, False, ("", "x", 0)),
        (f"<think>t</think>say\n{CALL}\n{CALL}", False, True, ("t", "say", 2)),
        (CALL, False, False, ("", CALL, 0)),
        ("<tool_call>not json</tool_call>!", False, True, ("", "<tool_call>not json</tool_call>!", 0)),
        ("<think>\n" + CALL + "</think>", False, True, (CALL, "", 0)),
    ],
)  # fmt: skip
def test_parts(text: str, thinking: bool, tools: bool, expected: tuple[str, str, int]) -> None:
    reasoning, content, calls = split(text, [], thinking, tools)
    assert (reasoning, content, len(calls)) == expected


def test_a_call() -> None:
    assert read_call('{"name": "f", "arguments": {"x": "é"}}') == ("f", '{"x": "é"}')
    assert read_call('{"name": "f", "arguments": "{}"}') == ("f", "{}")
    assert [read_call(text) for text in ("", "[]", '{"name": 1}', "[" * 100_000)] == [None] * 4


@given(st.text("abx<é", max_size=30), st.lists(st.text("abx<é", min_size=1, max_size=4), max_size=3))
def test_stop_strings_are_left_out(text: str, stops: list[str]) -> None:
    answer = AnswerText(TokenText(lambda tokens: "".join(map(chr, tokens))), stops)
    said = "".join(answer.feed([ord(character)]) for character in text) + answer.feed([], last=True)
    # The first character that completes a stop string ends the answer, as it does in the sampler.
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stops)]
    whole = text[: ends[0]] if ends else text
    first = min((place for stop in stops if (place := whole.find(stop)) >= 0), default=len(whole))
    assert said == whole[:first]
