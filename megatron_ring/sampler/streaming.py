"""Text of responses while they are sampled, one response after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_CUT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of a character whose bytes are not all there
_PIECES = 4  # UTF-8 writes a character in so many bytes at most


class Detokenizer:
    """Tokens to text as they come; each is decoded a few times, not once for every later one."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._start = self._said = 0  # tokens from _start on are decoded; those before _said are said

    def feed(self, tokens: Sequence[int], last: bool = False) -> str:
        """What `tokens` add to the text. The end of a character that is not whole is kept back, unless they are the last."""
        self._tokens += tokens
        before = self._decode(self._tokens[self._start : self._said])
        end, text = len(self._tokens), self._decode(self._tokens[self._start :])
        if text.endswith(_CUT) and not last:
            end, text = self._whole_characters(text)
        if text == before:
            # They have no text, and would be decoded again with every later one. Before the first text they may be spaces,
            # of which the decoder strips one alone.
            if end == len(self._tokens) and self._said:
                del self._tokens[self._said :]
            return ""
        if len(text) <= len(before):
            return ""
        # The last piece is decoded again with the next: what a token reads like may depend on the one before it.
        self._start, self._said = self._said, end
        return text[len(before) :]

    def _whole_characters(self, text: str) -> tuple[int, str]:
        """Where the tokens end that make whole characters, and their text. A character is of at most `_PIECES` tokens: where
        none of so many ends one, the first is of none, and the others may be the beginning of one."""
        for end in range(len(self._tokens) - 1, max(self._said, len(self._tokens) - _PIECES) - 1, -1):
            shorter = self._decode(self._tokens[self._start : end])
            if not shorter.endswith(_CUT) or end == self._said:
                return end, shorter
        end = len(self._tokens) - _PIECES + 1
        return end, self._decode(self._tokens[self._start : end])


class OrderedStream:
    """Writes responses in order: the first one that is not finished as it grows, later ones when their turn comes.

    Args:
        titles: written above each response; "" for none.
        write: takes pieces of text.
    """

    def __init__(self, titles: Sequence[str], decode: Decode, write: Callable[[str], None]) -> None:
        self._titles, self._decode, self._write = titles, decode, write
        self._unsaid: list[list[int]] = [[] for _ in titles]
        self._finished = [False] * len(titles)
        self._current = -1
        self._next()

    def token(self, index: int, token: int) -> None:
        """Response `index` has grown by `token`."""
        self._unsaid[index].append(token)
        if index == self._current:
            self._say()

    def finished(self, index: int) -> None:
        """Response `index` is whole."""
        self._finished[index] = True
        while self._current < len(self._titles) and self._finished[self._current]:
            self._say(last=True)
            self._write("\n")
            self._next()

    def _next(self) -> None:
        self._current += 1
        if self._current < len(self._titles):
            self._text = Detokenizer(self._decode)
            if self._titles[self._current]:
                self._write(f"{self._titles[self._current]}\n")
            self._say()

    def _say(self, last: bool = False) -> None:
        text = self._text.feed(self._unsaid[self._current], last)
        self._unsaid[self._current] = []
        if text:
            self._write(text)
