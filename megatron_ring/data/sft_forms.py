"""Public files of conversations as they are downloaded, recognised by their columns and read as rows of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_ring.data.forms import Form, Row, columns, first_fitting, kept
from megatron_ring.data.messages import RecordError


def sft_form(row: Mapping[str, Any]) -> Form | None:
    """The form of an SFT file whose first row this is; None where it is of none."""
    return first_fitting(SFT_FORMS, row)


SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
            "model": "assistant", "system": "system", "developer": "system"}  # fmt: skip


def _sharegpt(row: Row) -> Row:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise RecordError("'conversations' is not a list")
    messages: list[Any] = []
    if isinstance(row.get("system"), str) and row["system"].strip():
        messages.append({"role": "system", "content": row["system"]})
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RecordError(f"turn {index} of 'conversations' is no object")
        if "from" not in turn:
            messages.append(turn)  # role and content under this name
            continue
        speaker = SPEAKERS.get(str(turn["from"]).lower())
        if speaker is None:
            raise RecordError(f"turn {index} of 'conversations' is from {turn['from']!r}: use one of {', '.join(SPEAKERS)}")
        others = {name: value for name, value in turn.items() if name not in ("from", "value")}
        messages.append({**others, "role": speaker, "content": turn.get("value")})
    return {**kept(row, "domain", "source"), "messages": messages, **kept(row, "tools")}


def _completion(row: Row) -> Row:
    return {**kept(row, "domain", "source", "tools"), "prompt": row["prompt"], "response": row["completion"]}


def _alpaca(row: Row) -> Row:
    given = row.get("input")
    user = f"{row['instruction']}\n\n{given}" if isinstance(given, str) and given.strip() else row["instruction"]
    system = row.get("system")
    messages = [{"role": "system", "content": system}] if isinstance(system, str) and system.strip() else []
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}]
    return {**kept(row, "domain", "source"), "messages": messages}


def _answered(question: str, answer: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        return {"domain": "math", **kept(row, "source"), "prompt": row[question], "response": row[answer]}

    return convert


NOT_CONTRACT = columns("messages", "response")
SFT_FORMS: tuple[Form, ...] = (
    Form("ShareGPT (conversations)", columns("conversations"), _sharegpt, NOT_CONTRACT),
    Form("prompt and completion", columns("prompt", "completion"), _completion, NOT_CONTRACT),
    Form("Alpaca (instruction, input, output)", columns("instruction", "output"), _alpaca, NOT_CONTRACT),
    Form("GSM8K (question, answer)", columns("question", "answer"), _answered("question", "answer"), NOT_CONTRACT),
    Form(
        "worked problems (problem, solution)",
        columns("problem", "solution"),
        _answered("problem", "solution"),
        NOT_CONTRACT,
    ),
)
