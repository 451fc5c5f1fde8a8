"""Annotation: what stage files and reports select by, written into `metadata`. Nothing is dropped."""

from __future__ import annotations

from typing import Any

from megatron_ring.curation.choices import letter_of
from megatron_ring.curation.language import language_of
from megatron_ring.curation.options import Annotate
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.curation.subjects import subject_of
from megatron_ring.curation.text import prompt_text, words
from megatron_ring.curation.token_counts import TokenCounter
from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.normalise import clean

_SUBJECT_COLUMNS = ("subject", "type", "category", "problem_type")


class Annotator:
    """Annotates one row after another."""

    def __init__(self, options: Annotate) -> None:
        self._options = options
        self._tokens = TokenCounter(options.tokenizer, "annotate") if options.tokenizer else None

    def __call__(self, row: Row, writer: ShardWriter) -> Row | None:
        text, metadata = prompt_text(row["prompt"]), dict(row["metadata"])
        metadata["words"] = len(words(text))
        if self._tokens is not None:
            metadata["tokens"] = self._tokens(text)
        if self._options.language:
            found = language_of(text)
            metadata["language"] = found[0] if found else "unknown"
        if self._options.subject and row["domain"] == "math":
            given = next((metadata[name] for name in _SUBJECT_COLUMNS if isinstance(metadata.get(name), str)), None)
            metadata["subject"] = subject_of(text, given) or "unknown"
            if given is not None and given != metadata["subject"]:
                metadata["original_subject"] = given
        metadata["answer_kind"] = kind_of_answer(row["answer"])
        rate = self._rate(metadata)
        if rate is not None:
            metadata["solve_rate"], metadata["difficulty"] = rate, round(1 - rate, 6)
        return {**row, "metadata": metadata}

    def _rate(self, metadata: dict[str, Any]) -> float | None:
        """The solve rate from 0 to 1; None where there is none."""
        rate = metadata.get(self._options.solve_rate or "solve_rate")
        if isinstance(rate, str):
            number = parse_number(rate.strip())
            rate = float(number.value) if number else None
        if not isinstance(rate, int | float) or isinstance(rate, bool):
            return None
        rate = rate / 100 if self._options.solve_rate and rate > 1 else rate
        return float(rate) if 0 <= rate <= 1 else None


def kind_of_answer(answer: Any) -> str:
    """What a verifier compares: `integer`, `number`, `fraction`, `expression`, `choice`, `text`, `tests`, `instructions` or
    `object`."""
    if isinstance(answer, bool):
        return "text"
    if isinstance(answer, int):
        return "integer"
    if isinstance(answer, float):
        return "number"
    if isinstance(answer, str):
        if answer.isdecimal() and answer.isascii() and len(answer) <= 200:
            return "integer"
        plain = clean(answer)
        number = parse_number(plain)
        if number is not None:
            whole = number.value.denominator == 1
            return "integer" if whole and not number.rounded else "fraction" if not number.rounded else "number"
        if letter_of(answer):
            return "choice"
        return "expression" if any(sign in plain for sign in "\\^=+*/()[]_{}") or len(plain) < 4 else "text"
    if isinstance(answer, dict):
        if "instruction_id_list" in answer:
            return "instructions"
        return (
            "tests" if {"tests", "test", "input_output", "public_tests", "public_test_cases"} & answer.keys() else "object"
        )
    return "object"
