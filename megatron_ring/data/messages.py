"""Conversations as files have them: roles, texts, parts, reasoning beside the content, marks of what is trained.

What a message holds is read, refused by name, or named (`unread_keys`); nothing of it is left out in silence.

- `content` is text, or a list of parts whose `type` is text. Another part (an image) is refused.
- `reasoning_content`, `reasoning` or `thinking` of an assistant's message goes before its content, in `<think>` tags.
- `weight` (0 or 1), `train` (true or false) and others of `MARKS` say whether a message is trained. `mask`, which may mean
  either, is refused.
- `from` and `value` (ShareGPT) are other names of `role` and `content`.
- `developer` is another name of the system role. A `tool` message is text that the chat template must know how to show.
- `tool_calls` of an assistant's message are calls of functions, with or without a text. `function_call` is refused.
- `tool_call_id` of results puts them in the order of their calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.data.tool_calls import CallError, read_calls, results_in_order

ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"developer": "system"}
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool",
            **OTHER_ROLES, **{role: role for role in ROLES}}  # fmt: skip
"""What `from` says, and its role."""
REASONING = ("reasoning_content", "reasoning", "thinking")
SETTINGS = ("on", "off", "yes", "no", "true", "false", "none", "low", "medium", "high")  # how much to think, not a thought
MARKS = ("weight", "train", "training", "trainable", "loss", "loss_mask", "step_loss_mask", "loss_weight", "loss_scale")
UNCLEAR_MARKS = ("mask", "masked", "train_detail", "training_detail")
PICTURES = ("images", "image", "audio", "audios", "videos", "video")
UNREADABLE = ("function_call", *PICTURES)
READ = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "from", "value", *REASONING, *MARKS, *UNCLEAR_MARKS, *UNREADABLE}
)
# Words in the names of columns that hold a model's thinking.
_THINKING = frozenset(
    ("think", "thinking", "thought", "thoughts", "reasoning", "rationale", "trajectory", "trajectories", "cot")
)
TEXT_PARTS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: one of `ROLES`.
        calls: what an assistant calls, as JSON text (`tool_calls.read_calls`); "" nothing.
        tools: what may be called, as JSON text (`tool_calls.read_tools`); of a conversation's first message, which all have.
    """

    role: str
    content: str
    calls: str = ""
    tools: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object of files and chat templates; what may be called stands beside the conversation there."""
        called = {"tool_calls": json.loads(self.calls)} if self.calls else {}
        return {"role": self.role, "content": self.content, **called}


class RecordError(ValueError):
    """What is wrong with one record, said without its place in a file."""


def kind_of(value: object) -> str:
    """A JSON word for the type of a value."""
    if isinstance(value, bool):
        return "true or false"
    names: dict[type, str] = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), "null" if value is None else type(value).__name__)


def is_nothing(value: object) -> bool:
    """Whether a value says nothing, also as JSON text, which many tables have for lists."""
    if isinstance(value, bool | int | float):
        return False
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def json_of(value: object, *openings: str) -> object:
    """What a column of JSON text holds that begins with one of `openings` ("[", "{"); any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(openings):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def read_prompt(value: object) -> str | tuple[Message, ...]:
    """A prompt: text, or messages that end with the user's. Raises `RecordError`."""
    if isinstance(value, str):
        if not value.strip():
            raise RecordError("'prompt' is empty: give text")
        return value
    if not isinstance(value, list):
        raise RecordError(f"'prompt' is {kind_of(value)}: make it text, or a list of {{role, content}} objects")
    return read_messages(value, "prompt", last="user")[0]


def read_messages(value: object, key: str, last: str) -> tuple[tuple[Message, ...], tuple[bool | None, ...]]:
    """A conversation, and its marks where there are some (else empty).

    Args:
        key: the name of the column, for messages.
        last: role of the last message; a prompt may also end with a tool's.

    Raises:
        RecordError: names the message and what of it cannot be read.
    """
    if not isinstance(value, list) or not value:
        raise RecordError(f"'{key}' is {kind_of(value)}: make it a list of {{role, content}} objects")
    messages, marks = [], []
    for index, item in enumerate(value):
        where = f"message {index} of '{key}'"
        if not isinstance(item, dict):
            raise RecordError(f"{where} is {kind_of(item)}: give {{role, content}}")
        message = _message(item, where)
        messages.append(message)
        mark = _mark(item, where)
        if mark and message.role != "assistant":
            raise RecordError(f"{where} is marked to be trained, but role {message.role}: only an assistant's is trained")
        marks.append(mark if message.role == "assistant" else None)
    if messages[0].role == "assistant":
        raise RecordError(f"'{key}' begins with an assistant message: begin with a user or system message")
    ends = (last, "tool") if last == "user" else (last,)
    if messages[-1].role not in ends:
        raise RecordError(f"'{key}' ends with a message of role {messages[-1].role}: end with one of role {last}")
    callers = [place for place, message in enumerate(messages) if message.calls]
    order = results_in_order(value, [message.role for message in messages], callers)
    marked = [mark for mark in marks if mark is not None]
    return tuple(messages[place] for place in order), tuple(marks) if marked else ()


def speaker_of(name: object) -> str | None:
    """The role of what `from` says, in any capitals; None where it is of none."""
    return SPEAKERS.get(name.strip().lower()) if isinstance(name, str) else None


def unread_keys(values: Iterable[object]) -> set[str]:
    """Keys of messages that say something and are not read, of all lists among `values`."""
    messages = [item for value in values if isinstance(value, list) for item in value if isinstance(item, dict)]
    return {
        str(key) for item in messages for key, value in item.items() if key not in READ and value not in (None, "", [], {})
    }


def unread_columns(row: Mapping[str, Any], used: Iterable[str] = ()) -> set[str]:
    """Columns of an SFT row, but those that are `used`, that seem to hold thinking or to say what is trained."""
    found = set()
    for name, value in row.items():
        small = str(name).lower()
        text = isinstance(value, str | list | dict) and not is_nothing(value) and str(value).strip().lower() not in SETTINGS
        thinks = text and small not in REASONING and not _THINKING.isdisjoint(re.split(r"[^a-z]+", small))
        if (thinks or (small in (*MARKS, *UNCLEAR_MARKS) and value is not None)) and name not in used:
            found.add(str(name))
    return found


def reasoning_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The reasoning in columns of its own beside an answer, for its message. A setting, such as "on", is none."""
    given = {name: row[name] for name in REASONING if row.get(name) is not None}
    return {
        name: value
        for name, value in given.items()
        if not isinstance(value, bool | int | float) and str(value).strip().lower() not in SETTINGS
    }


def messages_to_json(messages: Sequence[Message], marks: Sequence[bool | None] = ()) -> list[dict[str, Any]]:
    """The list that `read_messages` reads back as the same."""
    rows = [message.to_json() for message in messages]
    for row, mark in zip(rows, marks, strict=False):
        if mark is not None:
            row["train"] = mark
    return rows


def _message(item: dict[str, Any], where: str) -> Message:
    for name in UNREADABLE:
        if item.get(name) and not is_nothing(item[name]):
            raise RecordError(f"{where} has '{name}', which cannot be read: leave such conversations out")
    role, calls = _role(item, where), _calls(item, where)
    text = item.get("value") if item.get("content") is None else item["content"]
    content, reasoning = ("", []) if text is None and calls else _content(text, where)
    for name in REASONING:
        given = item.get(name)
        if given is None or given == "":
            continue
        if not isinstance(given, str):
            raise RecordError(f"{where} has '{name}' that is {kind_of(given)}: make it text")
        reasoning.append(given)
    if len(set(reasoning)) > 1:
        raise RecordError(f"{where} has its reasoning more than once: keep one of {', '.join(REASONING)}")
    if calls and role != "assistant":
        raise RecordError(f"{where} has 'tool_calls', but role {role}: only an assistant calls")
    if reasoning and not content.strip() and not calls:
        raise RecordError(f"{where} has reasoning and no answer: leave such conversations out")
    if reasoning:
        content = _with_reasoning(role, reasoning[0], content, where)
    if not content.strip() and not calls and role not in ("system", "tool"):
        raise RecordError(f"{where} is empty: give text")
    return Message(role, content, calls)


def _calls(item: dict[str, Any], where: str) -> str:
    try:
        return "" if is_nothing(item.get("tool_calls")) else read_calls(item["tool_calls"])
    except CallError as error:
        raise RecordError(f"{where}: {error}") from None


def _role(item: dict[str, Any], where: str) -> str:
    given = item.get("role")
    if given is None and item.get("from") is not None:
        given, role = item["from"], speaker_of(item["from"])
    else:
        role = given.strip().lower() if isinstance(given, str) else None
        role = OTHER_ROLES.get(role or "", role)
    if role not in ROLES:
        raise RecordError(f"{where} has role {given!r}: use one of {', '.join((*ROLES, *OTHER_ROLES))}")
    return str(role)


def _with_reasoning(role: str, reasoning: str, content: str, where: str) -> str:
    if role != "assistant":
        raise RecordError(f"{where} has reasoning, but role {role}: only an assistant reasons")
    if "<think>" in content or "</think>" in content:
        if content.partition("</think>")[0].strip().removeprefix("<think>").strip() == reasoning.strip():
            return content  # it is there twice
        raise RecordError(f"{where} has reasoning beside a content with <think>: keep one of the two")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{content}"


def _content(value: object, where: str) -> tuple[str, list[str]]:
    """Text, and the reasoning that stands among its parts."""
    if isinstance(value, str):
        return value, []
    if not isinstance(value, list):
        raise RecordError(f"{where} has no text: give {{role, content}}")
    texts, reasoning = [], []
    for part in value:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if kind in ("thinking", "reasoning") and isinstance(part, dict) and isinstance(part.get(kind), str):
            reasoning.append(part[kind])
        elif isinstance(part, str) or (kind in TEXT_PARTS and isinstance(text, str)):
            texts.append(str(text))
        else:
            raise RecordError(f"{where} has a part of type {kind!r}: only text can be read")
    return "".join(texts), reasoning


def _mark(item: dict[str, Any], where: str) -> bool | None:
    """Whether the message is marked to be trained. Raises `RecordError` for a mark that is neither."""
    marks = set()
    for name in UNCLEAR_MARKS:
        if item.get(name) is not None:
            raise RecordError(f"{where} has '{name}', which may mean either: mark messages with 'train' true or false")
    for name in MARKS:
        value = item.get(name)
        if value is None:
            continue
        if value not in (0, 1):  # True and False are 1 and 0
            raise RecordError(f"{where} has '{name}' {value!r}: use 0 or 1, true or false")
        marks.add(bool(value))
    if len(marks) > 1:
        raise RecordError(f"{where} is marked to be trained and not to be: keep one mark")
    return marks.pop() if marks else None
