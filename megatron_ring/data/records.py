"""The typed records of prompt and SFT files, and the checks that turn a JSON object into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


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
    """One conversation to imitate; it ends with an assistant message."""

    messages: tuple[Message, ...]
    domain: str = "other"
    source: str = ""


class RecordError(ValueError):
    """What is wrong with one record, said without its place in a file."""


def prompt_from_json(row: object) -> PromptRecord:
    """Check one object of a prompt file. Keys other than the contract's are ignored. Raises `RecordError`."""
    row = _object(row)
    if row.get("answer") is None:
        raise RecordError("'answer' is missing: give what the verifier of the domain needs")
    if "prompt" not in row:
        raise RecordError("'prompt' is missing: give text, or a list of messages")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise RecordError(f"'metadata' is {_kind(metadata)}: make it an object")
    prompt = _prompt(row["prompt"])
    return PromptRecord(_text(row, "id"), _text(row, "domain"), prompt, row["answer"], metadata or {})


def prompt_to_json(record: PromptRecord) -> dict[str, Any]:
    """The object that `prompt_from_json` reads back as the same record."""
    prompt = record.prompt if isinstance(record.prompt, str) else _messages_to_json(record.prompt)
    row = {"id": record.id, "domain": record.domain, "prompt": prompt, "answer": record.answer}
    return {**row, "metadata": dict(record.metadata)} if record.metadata else row


def sft_from_json(row: object) -> SFTRecord:
    """Check one object of an SFT file: `messages`, or `prompt` and `response`. Raises `RecordError`."""
    row = _object(row)
    if row.get("messages") is not None:
        if row.get("prompt") is not None or row.get("response") is not None:
            raise RecordError("both 'messages' and 'prompt'/'response' are given: keep one of the two forms")
        messages = _messages(row["messages"], "messages", last="assistant")
    elif row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        messages = (*turns, Message("assistant", _text(row, "response")))
    else:
        raise RecordError("neither 'messages' nor 'prompt' and 'response' are given: use one of the two forms")
    domain = _text(row, "domain") if row.get("domain") is not None else SFTRecord.domain
    source = row.get("source")
    if source is not None and not isinstance(source, str):
        raise RecordError(f"'source' is {_kind(source)}: make it text")
    return SFTRecord(messages, domain, source or "")


def sft_to_json(record: SFTRecord) -> dict[str, Any]:
    """The object that `sft_from_json` reads back as the same record; one question and answer as prompt/response."""
    row: dict[str, Any]
    if [message.role for message in record.messages] == ["user", "assistant"]:
        row = {"prompt": record.messages[0].content, "response": record.messages[1].content}
    else:
        row = {"messages": _messages_to_json(record.messages)}
    row["domain"] = record.domain
    return {**row, "source": record.source} if record.source else row


def _object(row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, found {_kind(row)}: put one {{...}} on each line")
    return row


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        raise RecordError(f"'{key}' is missing: give text")
    if not isinstance(value, str):
        raise RecordError(f"'{key}' is {_kind(value)}: make it text")
    if not value.strip():
        raise RecordError(f"'{key}' is empty: give text")
    return value


def _prompt(value: object) -> str | tuple[Message, ...]:
    if isinstance(value, str):
        return _text({"prompt": value}, "prompt")
    return _messages(value, "prompt", last="user")


def _messages(value: object, key: str, last: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RecordError(f"'{key}' is {_kind(value)}: make it a list of {{role, content}} objects")
    messages = []
    for index, item in enumerate(value):
        if not isinstance(item, dict) or not isinstance(item.get("content"), str):
            raise RecordError(f"message {index} of '{key}' has no text: give {{role, content}}")
        if item.get("role") not in ROLES:
            raise RecordError(f"message {index} of '{key}' has role {item.get('role')!r}: use one of {', '.join(ROLES)}")
        if not item["content"].strip() and item["role"] != "system":
            raise RecordError(f"message {index} of '{key}' is empty: give text")
        messages.append(Message(item["role"], item["content"]))
    if messages[0].role == "assistant":
        raise RecordError(f"'{key}' begins with an assistant message: begin with a user or system message")
    if messages[-1].role != last:
        raise RecordError(f"'{key}' ends with a message of role {messages[-1].role}: end with one of role {last}")
    return tuple(messages)


def _messages_to_json(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _kind(value: object) -> str:
    """A JSON word for the type of a value."""
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "null" if value is None else type(value).__name__)
