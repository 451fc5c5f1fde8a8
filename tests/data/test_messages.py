"""Conversations as files have them: what a message holds is read, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.data.messages import RecordError, messages_to_json, read_messages
from megatron_ring.data.records import sft_from_json, sft_to_json

ASK = {"role": "user", "content": "q"}


def answer(**more: Any) -> list[dict[str, Any]]:
    return [ASK, {"role": "assistant", "content": "a", **more}]


@pytest.mark.parametrize(
    ("messages", "content"),
    [
        (answer(), "a"),
        (answer(reasoning_content="r"), "<think>\nr\n</think>\n\na"),
        (answer(thinking=" r\n"), "<think>\nr\n</think>\n\na"),
        (answer(reasoning="r", reasoning_content=None, tool_calls=None, weight=None), "<think>\nr\n</think>\n\na"),
        (answer(reasoning_content="r", content="<think>\nr\n</think>\na"), "<think>\nr\n</think>\na"),
        (answer(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),
        (answer(content=[{"type": "output_text", "text": "a"}]), "a"),
        (answer(content=["a", "b"]), "ab"),
        (
            answer(content=[{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}]),
            "<think>\nr\n</think>\n\na",
        ),
        (answer(content=[{"text": "a"}]), "a"),
        (answer(id=3, timestamp="2026-01-01", name="x"), "a"),
    ],
)
def test_contents(messages: list[dict[str, Any]], content: str) -> None:
    read, marks = read_messages(messages, "messages", last="assistant")
    assert read[-1].content == content and marks == ()


def test_roles() -> None:
    read, _ = read_messages([{"role": "developer", "content": "d"}, *answer()], "messages", last="assistant")
    assert [message.role for message in read] == ["system", "user", "assistant"]
    tool = [
        ASK,
        {"role": "assistant", "content": "a"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "b"},
    ]
    assert [message.role for message in read_messages(tool, "messages", last="assistant")[0]][2] == "tool"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (answer(tool_calls=[{"function": {"name": "f"}}]), "message 1 of 'messages' has 'tool_calls'"),
        (answer(function_call={"name": "f"}, content=None), "'function_call'"),
        (answer(content=None), "has no text"),
        (answer(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "a part of type 'image_url'"),
        (answer(content=[7]), "a part of type None"),
        (answer(images=["x.png"]), "'images'"),
        (answer(weight=0.5), "'weight' 0.5: use 0 or 1"),
        (answer(train="yes"), "'train' 'yes'"),
        (answer(weight=1, train=False), "keep one mark"),
        (answer(reasoning_content={"a": 1}), "'reasoning_content' that is an object"),
        (answer(reasoning_content="r", thinking="s"), "reasoning more than once"),
        (answer(reasoning_content="r", content="<think>other</think>a"), "beside a content with <think>"),
        ([{**ASK, "reasoning_content": "r"}, *answer()[1:]], "only an assistant reasons"),
        ([{"role": "bot", "content": "a"}, *answer()], "role 'bot': use one of system, user, assistant, tool, developer"),
        (["text"], "message 0 of 'messages' is text"),
    ],
)
def test_refused_by_name(messages: list[Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_messages(messages, "messages", last="assistant")


def test_marks() -> None:
    turns = [
        ASK,
        {"role": "assistant", "content": "a", "weight": 0},
        ASK,
        {"role": "assistant", "content": "b", "train": True},
    ]
    read, marks = read_messages(turns, "messages", last="assistant")
    assert marks == (None, False, None, True)
    assert read_messages(messages_to_json(read, marks), "messages", last="assistant") == (read, marks)
    record = sft_from_json({"messages": turns})
    assert sft_from_json(sft_to_json(record)) == record


def test_reasoning_beside_a_response() -> None:
    record = sft_from_json({"prompt": "q", "response": "a", "reasoning_content": "r"})
    assert record.messages[1].content == "<think>\nr\n</think>\n\na"


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_are_refused(key: str) -> None:
    with pytest.raises(RecordError, match=f"'{key}' is given"):
        sft_from_json({"messages": answer(), key: [{"name": "f"}]})
    assert sft_from_json({"messages": answer(), key: []}).messages
