"""Preference files: of two answers to a prompt, the one that was preferred.

| a row has | |
|---|---|
| `chosen`, `rejected` | text behind a `prompt`, whole conversations, or their last messages behind a `prompt` |
| `context` or `prompt`, `completions` | answers with a `rank` (the least is best) or a `score` (the greatest is) |

Optional: `margin` (a number), `subset` (else `domain`, else `source`), `id`, `system`. Public files are read as they are
downloaded (`preference_forms`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_ring.data.forms import UnansweredError
from megatron_ring.data.messages import Message, RecordError, kind_of, read_messages, read_prompt
from megatron_ring.data.records import refuse_unreadable, with_system

Pairs = Literal["best-worst", "all"]
Conversation = tuple[Message, ...] | str
"""Messages that end with an assistant's; or a text that is read as it is, without a chat template."""

_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):[ \t]*")
_ROLES = {"Human": "user", "Assistant": "assistant"}
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"))


class NoPreferenceError(UnansweredError):
    """A row that prefers neither answer: it is left out, and counted."""


@dataclass(frozen=True)
class PreferenceRecord:
    """Two conversations, of which the first was preferred.

    Attributes:
        margin: what the file asks the reward's distance to be above, if it does.
        strength: how strong the preference is, as the file says (a difference of scores or ranks); in its own units.
        subset: by what validation is told apart; may be empty.
        place: where it was read, FILE:LINE, for messages.
    """

    chosen: Conversation
    rejected: Conversation
    subset: str = ""
    margin: float | None = None
    strength: float | None = None
    id: str = ""
    place: str = field(default="", compare=False)


def preferences_from_json(row: Mapping[str, Any], pairs: Pairs = "best-worst") -> list[PreferenceRecord]:
    """The pairs of a row of the contract; `pairs`: which of several ranked answers are compared.

    Raises:
        NoPreferenceError: the row prefers none.
        RecordError: what is wrong with it.
    """
    refuse_unreadable(row, ("tools", "functions"))
    subset = next((str(row[name]) for name in ("subset", "domain", "source") if _is_name(row.get(name))), "")
    name = str(row["id"]) if _is_name(row.get("id")) else ""
    if row.get("completions") is not None:
        return [dataclasses.replace(record, subset=subset, id=name) for record in _ranked(row, pairs)]
    for side in ("chosen", "rejected"):
        if row.get(side) is None:
            raise RecordError(f"'{side}' is missing: give text or messages, or give ranked 'completions'")
    chosen, rejected = (_conversation(row, row[side], side) for side in ("chosen", "rejected"))
    record = PreferenceRecord(chosen, rejected, margin=_number(row, "margin"), strength=_strength(row))
    return [dataclasses.replace(_differing(record), subset=subset, id=name)]


def _is_name(value: object) -> bool:
    return (isinstance(value, str) and bool(value.strip())) or (isinstance(value, int) and not isinstance(value, bool))


def _differing(record: PreferenceRecord) -> PreferenceRecord:
    if record.chosen == record.rejected:
        raise NoPreferenceError("'chosen' and 'rejected' are the same")
    if isinstance(record.chosen, str) != isinstance(record.rejected, str):
        raise RecordError(
            "one of 'chosen' and 'rejected' is a conversation, the other a text without a prompt: give both alike"
        )
    return record


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RecordError(f"'{name}' is {kind_of(value)}: make it a number")
    return float(value)


def _strength(row: Mapping[str, Any]) -> float | None:
    if row.get("strength") is not None:
        return _number(row, "strength")
    for better, worse in SCORES:
        high, low = row.get(better), row.get(worse)
        if isinstance(high, int | float) and isinstance(low, int | float) and math.isfinite(high - low):
            return float(high) - float(low)
    return None


def _conversation(row: Mapping[str, Any], value: object, name: str) -> Conversation:
    """One side of a pair as a whole conversation, or as a text where nothing tells its turns."""
    prompt = _prompt(row)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        raise RecordError(f"'{name}' is a list of texts, as in RewardBench 2: give such files to tools/score_rewards.py")
    if isinstance(value, str):
        if not value.strip():
            raise RecordError(f"'{name}' is empty: give text")
        if prompt is not None and not _goes_on(row, value):
            return _whole(row, (*prompt, Message("assistant", value)), name)
        transcript = read_transcript(value, "assistant")
        return value if transcript is None else _whole(row, transcript, name)
    if not isinstance(value, list):
        raise RecordError(f"'{name}' is {kind_of(value)}: make it text, or a list of {{role, content}} objects")
    first = value[0] if value and isinstance(value[0], dict) else {}
    begins = str(first.get("role") or first.get("from") or "").strip().lower()
    if prompt is not None and begins in ("assistant", "gpt", "chatgpt", "model"):
        answer, _ = read_messages([{"role": "user", "content": "-"}, *value], name, last="assistant")
        return _whole(row, (*prompt, *answer[1:]), name)
    messages, _ = read_messages(value, name, last="assistant")
    if prompt is not None and not _repeats(prompt, messages):
        raise RecordError(f"'prompt' is not the beginning of the conversation '{name}': keep one of the two")
    return _whole(row, messages, name)


def _goes_on(row: Mapping[str, Any], text: str) -> bool:
    """Whether a text is the transcript that its prompt begins."""
    prompt = row.get("prompt")
    begins = isinstance(prompt, str) and text.strip().startswith(prompt.strip())
    return begins and read_transcript(str(prompt), "user") is not None


def _whole(row: Mapping[str, Any], messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    if not messages[-1].content.strip():
        raise RecordError(f"'{name}' ends with an empty answer: give text")
    return with_system(dict(row), messages, ())[0]


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    value = next((row[name] for name in ("prompt", "context") if row.get(name) is not None), None)
    if value is None:
        return None
    prompt = read_prompt(value)
    if not isinstance(prompt, str):
        return prompt
    return read_transcript(prompt, "user") or (Message("user", prompt),)


def _repeats(prompt: tuple[Message, ...], messages: tuple[Message, ...]) -> bool:
    """Whether a conversation has the prompt once more: as its beginning, or as one of the user's messages."""
    turns = messages[1:] if messages[0].role == "system" != prompt[0].role else messages
    if turns[: len(prompt)] == prompt:
        return True
    asked = [message.content.strip() for message in messages if message.role == "user"]
    return len(prompt) == 1 and prompt[0].content.strip() in asked


def read_transcript(text: str, last: Literal["user", "assistant"]) -> tuple[Message, ...] | None:
    """The turns of a transcript as HH-RLHF has them (`Human: … Assistant: …`), up to the assistant's answer, or where `last`
    is "user" up to where it begins; None where a text is none. Turns of one side in a row are joined.

    Raises:
        RecordError: it ends with the other side.
    """
    turns = list(_TURN.finditer(text))
    if not turns or turns[0][1] != "Human" or turns[0].start() > 0 or len(turns) < 2:
        return None
    ends = [*(turn.start() for turn in turns[1:]), len(text)]
    messages: list[Message] = []
    for turn, end in zip(turns, ends, strict=True):
        role, content = _ROLES[turn[1]], text[turn.end() : end].strip()
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content}\n\n{content}".strip())
        else:
            messages.append(Message(role, content))
    if last == "user" and messages[-1] == Message("assistant", ""):
        messages.pop()
    if messages[-1].role != last:
        raise RecordError(f"the transcript ends with a turn of role {messages[-1].role}: end it with one of role {last}")
    if any(not message.content for message in messages):
        raise RecordError("the transcript has an empty turn: leave it out")
    return tuple(messages)


def _ranked(row: Mapping[str, Any], pairs: Pairs) -> list[PreferenceRecord]:
    """Pairs of answers that are ranked, or scored."""
    given = row["completions"]
    if not isinstance(given, list) or len(given) < 2:
        raise RecordError(f"'completions' is {kind_of(given)}: make it a list of two answers or more")
    answers: list[tuple[float, Conversation]] = []
    for index, item in enumerate(given):
        if not isinstance(item, dict):
            raise RecordError(f"item {index} of 'completions' is {kind_of(item)}: give {{rank, completion}}")
        where = f"item {index} of 'completions'"
        rank, score = _number(item, "rank"), _number(item, "score")
        if (rank is None) == (score is None):
            raise RecordError(f"{where}: give a 'rank', where the least is best, or a 'score', where the greatest is")
        text = next(
            (item[name] for name in ("completion", "response", "answer", "text") if item.get(name) is not None), None
        )
        if text is None:
            raise RecordError(f"{where} has no 'completion': give text or messages")
        answer = _conversation(row, text, where)
        if isinstance(answer, str):
            raise RecordError("'context' is missing: give text or messages")
        answers.append((score if score is not None else -(rank or 0.0), answer))
    return _compared(answers, pairs)


def _compared(answers: Sequence[tuple[float, Conversation]], pairs: Pairs) -> list[PreferenceRecord]:
    order = sorted(answers, key=lambda answer: -answer[0])
    ends = [(order[0], order[-1])]
    found = [
        PreferenceRecord(better, worse, strength=high - low)
        for (high, better), (low, worse) in (ends if pairs == "best-worst" else _all_pairs(order))
        if high > low and better != worse
    ]
    if not found:
        raise NoPreferenceError("no answer of 'completions' is better than another")
    return found


def _all_pairs(order: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(one, other) for index, one in enumerate(order) for other in order[index + 1 :]]
