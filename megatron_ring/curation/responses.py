"""Responses of a teacher, one a row, for SFT: which columns hold them, and the rules by which one goes without being
scored. Whether its answer is right is `verify`'s business."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from megatron_ring.curation.language import language_of
from megatron_ring.curation.options import Responses
from megatron_ring.curation.store import Row, ShardWriter
from megatron_ring.curation.text import prompt_text, words
from megatron_ring.curation.token_counts import TokenCounter
from megatron_ring.data.messages import RecordError, kind_of, read_messages

_TAG = re.compile(r"</?think>")
# Letters by script. Latin and Greek are in every formula and belong to no language alone.
_SCRIPTS = {
    "Chinese or Japanese": re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"),
    "Korean": re.compile("[\u1100-\u11ff\uac00-\ud7af]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
}


def texts_of(value: Any, column: str) -> list[str]:
    """The responses in a column: a text, a conversation (its last message), or a list of either.

    Raises:
        RecordError: it holds something else.
    """
    if value is None or isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if any(item.get("role") or item.get("from") for item in value):
            last = read_messages(value, column, last="assistant")[0][-1]
            if last.calls:
                raise RecordError(f"'{column}' ends with calls of tools: only a text can be looked at")
            return [last.content]
        return [text for item in value for text in texts_of(item.get("text", item.get("content")), column)]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item, column)]
    raise RecordError(f"'{column}' is {kind_of(value)}: expected a response or a list of them")


class ResponseFilter:
    """Looks at one response after another."""

    def __init__(self, options: Responses) -> None:
        self._options = options
        self._tokens = TokenCounter(options.tokenizer, "responses") if options.tokenizer else None

    def __call__(self, row: Row, writer: ShardWriter) -> Row | None:
        objection = self._objection(row)
        if objection is None and self._tokens is not None:
            count = self._tokens(row["response"])
            row = {**row, "metadata": {**row["metadata"], "response_tokens": count}}
            objection = ("too_long", f"{count} tokens") if count > self._options.max_tokens else None
        if objection is None:
            return row
        writer.drop(row, *objection)
        return None

    def _objection(self, row: Row) -> tuple[str, str] | None:
        """Reason and evidence of the first rule that objects."""
        options, text = self._options, row.get("response")
        if not isinstance(text, str) or not text.strip():
            return "missing_response", "the row has no response"
        if row["metadata"].get("finish_reason") == "length":
            return "cut_off", "the length limit cut it"
        if len(text) < options.min_characters:
            return "too_short", f"{len(text)} characters"
        if len(text) > options.max_characters:
            return "too_long", f"{len(text)} characters"
        if (evidence := thinking_fault(text, options.think)) is not None:
            return "think_format", evidence
        if (evidence := repetition(text, options.repeat_words, options.max_repeats)) is not None:
            return "repetition", evidence
        found = language_of(answer_part(text)) if options.languages else None
        if found is not None and found[0] not in options.languages:
            return "language", f"{found[0]} ({found[1]:.2f})"
        if (evidence := mixing(text, prompt_text(row["prompt"]), options.max_mixing)) is not None:
            return "language_mixing", evidence
        return None


def thinking_fault(text: str, think: str) -> str | None:
    """What is wrong with the `<think>` block; None where nothing is.

    Args:
        think: `any`: no block, or a whole one; `required`: a whole one; `forbidden`: none.
    """
    tags = [(match[0], match.start()) for match in _TAG.finditer(text)]
    if not tags:
        return "it has no <think> block" if think == "required" else None
    if think == "forbidden":
        return "it has a <think> block"
    names = [name for name, _ in tags]
    if names == ["</think>"]:  # chat templates may begin the block themselves
        opened, closed = 0, tags[0][1]
    elif names == ["<think>", "</think>"]:
        opened, closed = tags[0][1] + len("<think>"), tags[1][1]
        if text[: tags[0][1]].strip():
            return "something stands before <think>"
    else:
        return f"its tags are {' '.join(names[:6])}"
    if not text[opened:closed].strip():
        return "its <think> block is empty"
    return None if text[closed + len("</think>") :].strip() else "nothing follows </think>"


def answer_part(text: str) -> str:
    """What follows the thinking; all of a text without any."""
    return text.rpartition("</think>")[2]


def repetition(text: str, size: int, most: int) -> str | None:
    """A run of `size` words that comes more than `most` times; None where none does."""
    said = words(text)
    if len(said) < size + most:
        return None
    counts = Counter(zip(*(said[place:] for place in range(size)), strict=False))
    run, count = counts.most_common(1)[0]
    return f"{count} times: {' '.join(run)[:80]}" if count > most else None


def mixing(text: str, prompt: str, most: float) -> str | None:
    """A script that neither the prompt has nor the response is mostly in, where its share of the letters is above `most`."""
    if text.isascii():
        return None
    letters = sum(map(str.isalpha, text))
    for name, script in _SCRIPTS.items():
        share = len(script.findall(text)) / max(1, letters)
        if most < share < 0.5 and not script.search(prompt):
            return f"{share:.1%} of its letters are {name}"
    return None
