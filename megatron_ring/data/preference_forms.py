"""Public preference files as they are downloaded, recognised by their columns and read as rows of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ring.data.forms import Form, Row, columns, first_fitting, kept
from megatron_ring.data.messages import RecordError, kind_of
from megatron_ring.data.preferences import NoPreferenceError

OTHERS = ("subset", "domain", "source", "id", "system", "system_prompt", "margin")


def preference_form(row: Mapping[str, Any]) -> Form | None:
    """The form of a preference file whose first row this is; None where it is of none."""
    return first_fitting(PREFERENCE_FORMS, row)


def _signed(first: str, second: str, sign: str, prompt: str) -> Any:
    """Two answers and a number that is negative where the first was preferred."""

    def convert(row: Row) -> Row:
        value = row[sign]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecordError(f"'{sign}' is {kind_of(value)}: make it a number")
        if value == 0:
            raise NoPreferenceError(f"'{sign}' is 0")
        better, worse = (first, second) if value < 0 else (second, first)
        pair = {"prompt": row[prompt], "chosen": row[better], "rejected": row[worse], "strength": abs(value)}
        return {**kept(row, *OTHERS), **pair}

    return convert


def _chosen_by(first: str, second: str, label: str, firsts: tuple[Any, ...], seconds: tuple[Any, ...], prompt: str) -> Any:
    """Two answers and a label that says which was preferred; any other prefers none."""

    def convert(row: Row) -> Row:
        if row[label] in firsts:
            better, worse = first, second
        elif row[label] in seconds:
            better, worse = second, first
        else:
            raise NoPreferenceError(f"'{label}' is {row[label]!r}")
        asked = {"prompt": row[prompt]} if prompt else {}
        return {**kept(row, *OTHERS), **asked, "chosen": row[better], "rejected": row[worse]}

    return convert


def _ultrafeedback(row: Row) -> Row:
    """Each answer's score is the mean of its fine-grained ratings; some overall scores of the file are known to be wrong."""
    completions = row["completions"]
    if not isinstance(completions, list):
        raise RecordError(f"'completions' is {kind_of(completions)}: make it a list")
    rated = [_rating(item, index) for index, item in enumerate(completions)]
    answers = [{"completion": item.get("response"), "score": score} for item, score in rated if score is not None]
    if len(answers) < 2:
        raise NoPreferenceError("fewer than two of its 'completions' are rated")
    return {**kept(row, *OTHERS), "prompt": row["instruction"], "completions": answers}


def _rating(item: Any, index: int) -> tuple[Row, float | None]:
    if not isinstance(item, dict):
        raise RecordError(f"item {index} of 'completions' is {kind_of(item)}: give an object")
    annotations = item.get("annotations")
    found = [_as_number(part.get("Rating")) for part in (annotations or {}).values() if isinstance(part, dict)]
    ratings = [rating for rating in found if rating is not None]
    mean = sum(ratings) / len(ratings) if ratings else None
    values = (_as_number(item.get("fine-grained_score")), mean, _as_number(item.get("overall_score")))
    return item, next((value for value in values if value is not None), None)


def _as_number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _nectar(row: Row) -> Row:
    return {**kept(row, *OTHERS), "prompt": row["prompt"], "completions": row["answers"]}


def _beside_a_conversation(column: str) -> Any:
    """Answers beside the conversation before them."""

    def convert(row: Row) -> Row:
        return {**kept(row, *OTHERS), "prompt": row[column], "chosen": row["chosen"], "rejected": row["rejected"]}

    return convert


def _alpaca(row: Row) -> Row:
    given = row.get("input")
    prompt = f"{row['instruction']}\n\n{given}" if isinstance(given, str) and given.strip() else row["instruction"]
    return {**kept(row, *OTHERS), "prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _rejected_response(row: Row) -> Row:
    """A conversation, and another answer in the place of its last message."""
    messages, other = row["messages"], row["rejected_response"]
    if not isinstance(messages, list) or len(messages) < 2:
        raise RecordError(f"'messages' is {kind_of(messages)}: make it a conversation that ends with the assistant")
    return {**kept(row, *OTHERS), "prompt": messages[:-1], "chosen": [messages[-1]], "rejected": other}


PAIR = ("chosen", "rejected")
NO_PROMPT = columns("prompt", "context", "completions")
PREFERENCE_FORMS: tuple[Form, ...] = (
    Form(
        "HelpSteer3 (context, response1, response2)",
        columns("context", "response1", "response2", "overall_preference"),
        _signed("response1", "response2", "overall_preference", "context"),
    ),
    Form(
        "HelpSteer2 preferences (prompt, response_1, response_2)",
        columns("prompt", "response_1", "response_2", "preference_strength"),
        _signed("response_1", "response_2", "preference_strength", "prompt"),
    ),
    Form("UltraFeedback (instruction, completions)", columns("instruction", "completions"), _ultrafeedback),
    Form("Nectar (prompt, ranked answers)", columns("prompt", "answers"), _nectar, columns(*PAIR)),
    Form(
        "PKU-SafeRLHF (response_0, response_1)",
        columns("prompt", "response_0", "response_1", "better_response_id"),
        _chosen_by("response_0", "response_1", "better_response_id", (0, "0"), (1, "1"), "prompt"),
    ),
    Form(
        "SHP (history, human_ref_A, human_ref_B)",
        columns("history", "human_ref_a", "human_ref_b", "labels"),
        _chosen_by("human_ref_a", "human_ref_b", "labels", (1,), (0,), "history"),
    ),
    Form(
        "Chatbot Arena (conversation_a, conversation_b)",
        columns("conversation_a", "conversation_b", "winner"),
        _chosen_by("conversation_a", "conversation_b", "winner", ("model_a",), ("model_b",), ""),
    ),
    Form(
        "messages and rejected_response",
        columns("messages", "rejected_response"),
        _rejected_response,
        columns(*PAIR),
    ),
    Form(
        "conversations and two answers", columns("conversations", *PAIR), _beside_a_conversation("conversations"), NO_PROMPT
    ),
    Form("instruction and two answers", columns("instruction", *PAIR), _alpaca, NO_PROMPT),
    Form("question and two answers", columns("question", *PAIR), _beside_a_conversation("question"), NO_PROMPT),
    Form("input and two answers", columns("input", *PAIR), _beside_a_conversation("input"), NO_PROMPT),
)
