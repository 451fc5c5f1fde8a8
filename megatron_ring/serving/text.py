"""Tokens of an answer to what a client reads, while they come: text up to a stop string, reasoning, content, calls of tools.

What may yet turn out to be part of a stop string or a tag is kept back until that is known, so that the pieces of a stream
make up what an answer in one piece says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megatron_ring.data.token_text import TokenText
from megatron_ring.data.turns import END_OF_THINK, THINK
from megatron_ring.sampler.streaming import Detokenizer

CALL, END_OF_CALL = "<tool_call>", "</tool_call>"


def kept_back(text: str, marks: Sequence[str]) -> int:
    """How many of the last characters of `text` may be the beginning of one of `marks`."""
    longest = max((len(mark) - 1 for mark in marks), default=0)
    for count in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0


class AnswerText:
    """Text of an answer up to the first of its stop strings, which is left out. The first is the one that is whole first;
    of several that end together, the longest."""

    def __init__(self, text: TokenText, stops: Sequence[str]) -> None:
        self._text, self._stops = Detokenizer(text), tuple(stops)
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, tokens: Sequence[int], last: bool = False) -> str:
        """What `tokens` add. They are not the last ones unless said so."""
        if self.stopped_by is not None:
            return ""
        text = self._held + self._text.feed(tokens, last)
        found = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            _, place, self.stopped_by = min(found)
            self._held = ""
            return text[:place]
        held = 0 if last else kept_back(text, self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


class Call(NamedTuple):
    """A call of a tool; its arguments are JSON."""

    name: str
    arguments: str


class Piece(NamedTuple):
    """A part of an answer: text to show, or a call."""

    kind: Literal["reasoning", "content", "call"]
    text: str = ""
    call: Call | None = None


def read_call(text: str) -> Call | None:
    """The call between the tags; None where it is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    return Call(value["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


@dataclass
class Splitter:
    """Tells reasoning, content and calls apart. Without `<think>` at its beginning, and without calls, content is the text
    as it stands.

    Args:
        thinking: the prompt has opened `<think>`.
        tools: calls are looked for; otherwise their tags are text like any other.
    """

    thinking: bool
    tools: bool

    def __post_init__(self) -> None:
        self._state: Literal["start", "reasoning", "content", "call"] = "reasoning" if self.thinking else "start"
        self._buffer = ""
        self._strip = self.thinking  # white space at the beginning of a part is left out

    def feed(self, text: str, last: bool = False) -> list[Piece]:
        """The parts that are known with `text`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._advance(pieces, last):
            pass
        return pieces

    def _advance(self, pieces: list[Piece], last: bool) -> bool:
        """Take one part, or what is known of it, from the buffer; whether more may follow."""
        if self._state == "start":
            bare = self._buffer.lstrip()
            if bare.startswith(THINK):
                self._buffer, self._state, self._strip = bare[len(THINK) :], "reasoning", True
            elif last or not THINK.startswith(bare):
                self._state = "content"
            else:
                return False
            return True
        if self._state == "reasoning":
            return self._until(END_OF_THINK, "reasoning", "content", pieces, last)
        if self._state == "content":
            return self._until(CALL if self.tools else None, "content", "call", pieces, last)
        inside, end, rest = self._buffer.partition(END_OF_CALL)
        if not end and not last:
            return False
        call = read_call(inside)
        if call is None:
            pieces.append(Piece("content", f"{CALL}{inside}{end}"))
        else:
            pieces.append(Piece("call", call=call))
        self._buffer, self._state, self._strip = rest, "content", call is not None
        return bool(rest)

    def _until(
        self, mark: str | None, kind: Literal["reasoning", "content"], following: Literal["content", "call"],
        pieces: list[Piece], last: bool,
    ) -> bool:  # fmt: skip
        if self._strip:
            self._buffer = self._buffer.lstrip()
        text, end, rest = self._buffer, "", ""
        if mark is not None:
            text, end, rest = self._buffer.partition(mark)
        if end:
            self._say(pieces, kind, text.rstrip())
            self._buffer, self._state, self._strip = rest, following, True
            return True
        known = text
        if mark is not None and not last:
            known = text[: len(text) - kept_back(text, (mark,))].rstrip()
        elif mark is not None and kind == "reasoning":
            known = text.rstrip()
        self._buffer = "" if last else text[len(known) :]
        self._say(pieces, kind, known)
        return False

    def _say(self, pieces: list[Piece], kind: Literal["reasoning", "content"], text: str) -> None:
        if text:
            self._strip = False
            pieces.append(Piece(kind, text))
