"""Public files of conversations as they are downloaded, recognised by their columns and read as rows of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from megatron_ring.data.forms import Form, Row, columns, first_fitting, kept
from megatron_ring.data.messages import SPEAKERS, RecordError, json_of, kind_of, reasoning_of, speaker_of


def sft_form(row: Mapping[str, Any]) -> Form | None:
    """The form of an SFT file whose first row this is; None where it is of none."""
    return first_fitting(SFT_FORMS, row)


def _beside(row: Row) -> Row:
    """What is kept beside the conversation. A domain or source that is no text, as a list of subjects, is another thing."""
    texts = {name: value for name, value in kept(row, "domain", "source").items() if isinstance(value, str)}
    return {**texts, **kept(row, "system", "system_prompt")}


def _sharegpt(row: Row) -> Row:
    turns = json_of(row["conversations"], "[")
    if not isinstance(turns, list):
        raise RecordError("'conversations' is not a list")
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise RecordError(f"turn {index} of 'conversations' is no object")
        speaker = turn.get("from")
        if speaker is not None and speaker_of(speaker) is None:
            raise RecordError(f"turn {index} of 'conversations' is from {speaker!r}: use one of {', '.join(SPEAKERS)}")
    return {**_beside(row), **reasoning_of(row), "messages": turns}


def _pair(prompt: str, response: str, **more: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        return {**_beside(row), **reasoning_of(row), "prompt": row[prompt], "response": row[response]} | more

    return convert


def _text(row: Row, name: str) -> str:
    """A column of text, or a number as text; empty where there is none."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise RecordError(f"'{name}' is {kind_of(value)}: make it text")
    return "" if value is None else str(value)


def _alpaca(output: str) -> Callable[[Row], Row]:
    """Rows of an instruction and what it is about; `history` of LLaMA-Factory holds earlier instructions and outputs."""

    def convert(row: Row) -> Row:
        texts = [_text(row, name) for name in ("instruction", "input", "context")]
        user = "\n\n".join(text for text in texts if text.strip())
        messages: list[Row] = []
        for index, pair in enumerate(row.get("history") or []):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RecordError(f"item {index} of 'history' is not an instruction and its output")
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
        answer = {"role": "assistant", "content": _text(row, output), **reasoning_of(row)}
        return {**_beside(row), "messages": [*messages, {"role": "user", "content": user}, answer]}

    return convert


def _is_gsm8k(row: Row) -> bool:
    return isinstance(row["answer"], str) and "####" in row["answer"]


NEITHER, NO_PROMPT = columns("messages", "response"), columns("messages", "prompt")
SFT_FORMS: tuple[Form, ...] = (
    Form("ShareGPT (conversations)", columns("conversations"), _sharegpt, NEITHER),
    Form("prompt and completion", columns("prompt", "completion"), _pair("prompt", "completion"), NEITHER),
    Form("Alpaca (instruction, input, output)", columns("instruction", "output"), _alpaca("output"), NEITHER),
    Form("Dolly (instruction, context, response)", columns("instruction", "response"), _alpaca("response"), NO_PROMPT),
    Form("question and response", columns("question", "response"), _pair("question", "response"), NO_PROMPT),
    Form("query and response", columns("query", "response"), _pair("query", "response"), NO_PROMPT),
    Form("GSM8K (question, answer)", columns("question", "answer"), _pair("question", "answer", domain="math"), NEITHER,
         holds=_is_gsm8k),
    Form("question and answer", columns("question", "answer"), _pair("question", "answer"), NEITHER),
    Form("worked problems (problem, solution)", columns("problem", "solution"),
         _pair("problem", "solution", domain="math"), NEITHER),
)  # fmt: skip
