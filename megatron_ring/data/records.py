"""The typed records of prompt and SFT files, and the checks that turn a JSON object into one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_ring.data.messages import (
    PICTURES,
    Message,
    RecordError,
    is_nothing,
    kind_of,
    messages_to_json,
    read_messages,
    read_prompt,
    reasoning_of,
)
from megatron_ring.data.tool_calls import CallError, read_tools

__all__ = [
    "Message",
    "PromptRecord",
    "RecordError",
    "SFTRecord",
    "kind_of",
    "prompt_from_json",
    "prompt_to_json",
    "refuse_unreadable",
    "response_of",
    "sft_from_json",
    "sft_to_json",
    "tools_of",
    "with_system",
    "with_tools",
]


@dataclass(frozen=True)
class PromptRecord:
    """One prompt for reinforcement learning or evaluation; `answer` is whatever the domain's verifier needs. `place` is
    where it was read, FILE:LINE, for messages; empty where it comes from no file."""

    id: str
    domain: str
    prompt: str | tuple[Message, ...]
    answer: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as a conversation that ends with a user message."""
        return (Message("user", self.prompt),) if isinstance(self.prompt, str) else self.prompt


@dataclass(frozen=True)
class SFTRecord:
    """One conversation to imitate; it ends with an assistant message.

    `marks` has one entry for each message where the file marks some: True (train on it), False (do not) or None (unmarked).
    `place` is where it was read, FILE:LINE, for messages; empty where it comes from no file.
    """

    messages: tuple[Message, ...]
    domain: str = "other"
    source: str = ""
    marks: tuple[bool | None, ...] = ()
    place: str = field(default="", compare=False)


def prompt_from_json(row: object) -> PromptRecord:
    """Check one object of a prompt file. Keys other than the contract's are ignored. Raises `RecordError`."""
    row = _object(row)
    if row.get("answer") is None:
        raise RecordError("'answer' is missing: give what the verifier of the domain needs")
    if row.get("prompt") is None:
        raise RecordError("'prompt' is missing: give text, or a list of messages")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise RecordError(f"'metadata' is {kind_of(metadata)}: make it an object")
    refuse_unreadable(row)
    prompt = read_prompt(row["prompt"])
    if not is_nothing(row.get("tools")):
        prompt = with_tools((Message("user", prompt),) if isinstance(prompt, str) else prompt, row["tools"])
    return PromptRecord(_id(row), _text(row, "domain"), prompt, row["answer"], metadata or {})


def prompt_to_json(record: PromptRecord) -> dict[str, Any]:
    """The object that `prompt_from_json` reads back as the same record."""
    prompt = record.prompt if isinstance(record.prompt, str) else messages_to_json(record.prompt)
    row = {"id": record.id, "domain": record.domain, "prompt": prompt, "answer": record.answer, **tools_of(record.messages)}
    return {**row, "metadata": dict(record.metadata)} if record.metadata else row


def sft_from_json(row: object) -> SFTRecord:
    """Check one object of an SFT file: `messages`, or `prompt` and `response`. A `prompt` beside `messages` is their first
    user message once more, as many public files have it. A `system` or `system_prompt` beside either is the first message.
    Raises `RecordError`."""
    row = _object(row)
    refuse_unreadable(row)
    marks: tuple[bool | None, ...] = ()
    if row.get("messages") is not None:
        if row.get("response") is not None:
            raise RecordError("both 'messages' and 'response' are given: keep one of the two forms")
        messages, marks = read_messages(row["messages"], "messages", last="assistant")
        _check_repeated_prompt(row.get("prompt"), messages)
        _check_repeated_reasoning(row, messages)
    elif row.get("prompt") is not None:
        prompt = read_prompt(row["prompt"])
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        messages = (*turns, *response_of(row))
    else:
        raise RecordError("neither 'messages' nor 'prompt' and 'response' are given: use one of the two forms")
    messages, marks = with_system(row, messages, marks)
    messages = with_tools(messages, row.get("tools"))
    domain = _text(row, "domain") if row.get("domain") is not None else SFTRecord.domain
    source = row.get("source")
    if source is not None and not isinstance(source, str):
        raise RecordError(f"'source' is {kind_of(source)}: make it text")
    return SFTRecord(messages, domain, source or "", marks)


def _check_repeated_prompt(prompt: object, messages: tuple[Message, ...]) -> None:
    if prompt is None:
        return
    first = next((message.content for message in messages if message.role == "user"), "")
    same = isinstance(prompt, str) and prompt.strip() == first.strip()
    same = same or (isinstance(prompt, list) and read_prompt(prompt) == messages[: len(prompt)])
    if not same:
        raise RecordError("'prompt' is not the first user message of 'messages': keep one of the two")


def _check_repeated_reasoning(row: dict[str, Any], messages: tuple[Message, ...]) -> None:
    """Reasoning in a column beside `messages` may be there twice; which message it belongs to is not known."""
    for name, value in reasoning_of(row).items():
        if value and not any("<think>" in message.content for message in messages if message.role == "assistant"):
            raise RecordError(f"'{name}' stands beside 'messages': put it into the assistant's message, under that name")


def with_tools(messages: tuple[Message, ...], tools: object) -> tuple[Message, ...]:
    """A conversation that may call `tools`. Raises `RecordError`."""
    try:
        read = "" if is_nothing(tools) else read_tools(tools)
    except CallError as error:
        raise RecordError(str(error)) from None
    return (replace(messages[0], tools=read), *messages[1:]) if read else messages


def tools_of(messages: Sequence[Message]) -> dict[str, Any]:
    """`tools` as a row has them beside its conversation; nothing where there are none."""
    return {"tools": json.loads(messages[0].tools)} if messages and messages[0].tools else {}


def with_system(
    row: dict[str, Any], messages: tuple[Message, ...], marks: tuple[bool | None, ...]
) -> tuple[tuple[Message, ...], tuple[bool | None, ...]]:
    """A conversation and its marks, a `system` or `system_prompt` beside it as first message. Raises `RecordError`."""
    for name in ("system", "system_prompt"):
        given = row.get(name)
        if given is None or (isinstance(given, str) and not given.strip()):
            continue
        if not isinstance(given, str):
            raise RecordError(f"'{name}' is {kind_of(given)}: make it text")
        if messages[0].role == "system":
            if messages[0].content.strip() != given.strip():
                raise RecordError(f"'{name}' is not the system message that is there already: keep one of the two")
            continue
        messages, marks = (Message("system", given), *messages), (None, *marks) if marks else ()
    return messages, marks


def response_of(row: Mapping[str, Any]) -> tuple[Message, ...]:
    """The answer of a row as text, or as a list of one assistant message; reasoning beside it goes before. Raises
    `RecordError`."""
    response = row.get("response")
    if isinstance(response, list):
        messages, _ = read_messages([{"role": "user", "content": "-"}, *response], "response", last="assistant")
        if len(messages) != 2:
            raise RecordError("'response' holds several messages: give one, or the whole conversation as 'messages'")
        return messages[1:]
    message = {"role": "assistant", "content": _text(row, "response"), **reasoning_of(row)}
    return read_messages([{"role": "user", "content": "-"}, message], "response", last="assistant")[0][1:]


def sft_to_json(record: SFTRecord) -> dict[str, Any]:
    """The object that `sft_from_json` reads back as the same record; one question and answer as prompt/response."""
    row: dict[str, Any]
    plain = not any(message.calls for message in record.messages) and not record.marks
    if plain and [message.role for message in record.messages] == ["user", "assistant"]:
        row = {"prompt": record.messages[0].content, "response": record.messages[1].content}
    else:
        row = {"messages": messages_to_json(record.messages, record.marks)}
    row |= {"domain": record.domain, **tools_of(record.messages)}
    return {**row, "source": record.source} if record.source else row


def refuse_unreadable(row: Mapping[str, Any], refused: Sequence[str] = ("functions",)) -> None:
    """What cannot be shown to the model: pictures, sounds, and columns of these names. Raises `RecordError`."""
    for key, value in row.items():
        name = str(key).lower()
        if not value or is_nothing(value):
            continue
        if name in refused or (name == "tools" and key != name):
            raise RecordError(f"'{key}' is given: it cannot be read here; leave such rows out")
        if name in PICTURES:
            raise RecordError(f"'{key}' is given: only text can be read; leave such rows out")


def _object(row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, found {kind_of(row)}: put one {{...}} on each line")
    return row


def _id(row: dict[str, Any]) -> str:
    value = row.get("id")
    whole = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if whole else _text(row, "id")


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise RecordError(f"'{key}' is missing: give text")
    if not isinstance(value, str):
        raise RecordError(f"'{key}' is {kind_of(value)}: make it text")
    if not value.strip():
        raise RecordError(f"'{key}' is empty: give text")
    return value
