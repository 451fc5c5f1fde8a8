"""Conversations as files have them: what a message holds is read, or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from megatron_ring.data.messages import RecordError, messages_to_json, read_messages
from megatron_ring.data.preferences import preferences_from_json
from megatron_ring.data.records import prompt_from_json, prompt_to_json, sft_from_json, sft_to_json
from megatron_ring.data.tool_calls import read_calls

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
        (answer(tool_calls=5), "message 1 of 'messages': 'tool_calls' is no list"),
        (answer(tool_calls=[{"function": {"name": 1}}]), "each of 'tool_calls' is"),
        (answer(tool_calls=[{"type": "code", "function": {"name": "f"}}]), "each of 'tool_calls' is"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": "{"}}]), "arguments of the call of f are not JSON"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": [1]}}]), "arguments of the call of f are not an object"),
        ([{**ASK, "tool_calls": [{"name": "f"}]}, *answer()[1:]], "only an assistant calls"),
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


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "é"}'}}
TOOL = {"type": "function", "function": {"name": "add", "description": "a sum", "parameters": {"type": "object"}}}


def test_tools_and_calls_are_kept() -> None:
    """In either form, with and without a text, through JSON and back."""
    turns = [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "3"},
             {"role": "assistant", "content": "It is 3.", "tool_calls": []}]  # fmt: skip
    record = sft_from_json({"messages": turns, "tools": [TOOL], "system": "be brief"})
    assert record.messages[0].role == "system" and json.loads(record.messages[0].tools) == [TOOL]
    assert record.messages[2].content == "" and record.messages[4].calls == ""
    called = json.loads(record.messages[2].calls)
    assert called == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}]
    assert sft_from_json(sft_to_json(record)) == record
    for nothing in ({"name": "add", "arguments": None}, {"name": "add", "arguments": ""}, {"name": "add"}):
        assert json.loads(read_calls([nothing]))[0]["function"] == {"name": "add", "arguments": {}}
    bare = {"name": "add", "arguments": {"a": 1, "b": "é"}}
    turns[1] = {"role": "assistant", "tool_calls": json.dumps([bare])}
    texts = {"messages": turns, "tools": json.dumps([TOOL["function"]]), "system": "be brief"}
    assert sft_from_json(texts) == record
    row = {"id": "a", "domain": "tool-calls", "prompt": "1+2?", "answer": {"calls": []}, "tools": [TOOL]}
    prompt = prompt_from_json(row)
    assert isinstance(prompt.prompt, tuple) and prompt_from_json(prompt_to_json(prompt)) == prompt
    assert prompt_from_json(row | {"tools": []}).prompt == "1+2?"


def test_what_cannot_be_shown_is_refused() -> None:
    for row, said in (
        ({"functions": [{"name": "f"}]}, "'functions' is given"), ({"tools": 5}, "'tools' is no list"),
        ({"tools": [{"description": "f"}]}, "each of 'tools' is"), ({"tools": "[{"}, "is text that is not JSON"),
    ):  # fmt: skip
        with pytest.raises(RecordError, match=said):
            sft_from_json({"messages": answer()} | row)
    with pytest.raises(RecordError, match="'tools' is given"):
        preferences_from_json({"prompt": "q", "chosen": "a", "rejected": "b", "tools": [TOOL]})
    assert sft_from_json({"messages": answer(), "functions": []}).messages
