"""Public files of conversations as they are downloaded, recognised by their columns and read as rows of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_ring.data.forms import Form, Row, columns, first_fitting, kept
from megatron_ring.data.messages import SPEAKERS, RecordError, reasoning_of, speaker_of


def sft_form(row: Mapping[str, Any]) -> Form | None:
    """The form of an SFT file whose first row this is; None where it is of none."""
    return first_fitting(SFT_FORMS, row)


OTHERS = ("domain", "source", "system", "system_prompt")


def _sharegpt(row: Row) -> Row:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise RecordError("'conversations' is not a list")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RecordError(f"turn {index} of 'conversations' is no object")
        speaker = turn.get("from")
        if speaker is not None and speaker_of(speaker) is None:
            raise RecordError(f"turn {index} of 'conversations' is from {speaker!r}: use one of {', '.join(SPEAKERS)}")
    return {**kept(row, *OTHERS), **reasoning_of(row), "messages": turns}


def _completion(row: Row) -> Row:
    return {**kept(row, *OTHERS), **reasoning_of(row), "prompt": row["prompt"], "response": row["completion"]}


def _alpaca(row: Row) -> Row:
    """Alpaca's rows; `history` of LLaMA-Factory holds pairs of earlier instructions and outputs."""
    given = row.get("input")
    user = f"{row['instruction']}\n\n{given}" if isinstance(given, str) and given.strip() else row["instruction"]
    messages: list[Row] = []
    for index, pair in enumerate(row.get("history") or []):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError(f"item {index} of 'history' is not an instruction and its output")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    messages += [{"role": "user", "content": user}, {"role": "assistant", "content": row["output"], **reasoning_of(row)}]
    return {**kept(row, *OTHERS), "messages": messages}


def _answered(question: str, answer: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        pair = {"prompt": row[question], "response": row[answer]}
        return {"domain": "math", **kept(row, *OTHERS[1:]), **reasoning_of(row), **pair}

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
