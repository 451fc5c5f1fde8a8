"""Text of responses while they are sampled, one response after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_ring.data.token_text import TokenText

_CUT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of a character whose bytes are not all there
_OPEN = 3  # characters at most that the beginning of one reads like: UTF-8 writes it in four bytes at most
# Tokens that are decoded again with the next. The last of them hold the beginning of a character (three tokens, each with
# one before it that is left out) and a token before that, as some decoders strip the spaces before the first one.
_CONTEXT = 12


class Detokenizer:
    """Tokens to text as they come; each is decoded a few times, not once for every later one.

    The pieces make up `decode` of all tokens, whatever these are and however they come.
    """

    def __init__(self, text: TokenText) -> None:
        self._text = text
        self._tokens: list[int] = []  # the last ones
        self._said = 0  # characters of their text
        self._settled = 0  # tokens before a run of bytes that is not over

    def feed(self, tokens: Sequence[int], last: bool = False) -> str:
        """What `tokens` add to the text. What may still change is kept back, unless they are the last: the end of a
        character that is not whole."""
        for token in tokens:
            self._take(token)
        text = self._text.decode(self._tokens if last else self._tokens[: self._settled])
        held = 0 if last else min(_OPEN, len(text) - len(text.rstrip(_CUT)))
        said, self._said = self._said, max(self._said, len(text) - held)
        if len(self._tokens) == self._settled > 2 * _CONTEXT:
            self._forget(text)
        return text[said : len(text) - held]

    def _take(self, token: int) -> None:
        """Of tokens in a row that are left out one is enough: they do no more than part their neighbours."""
        silent = token in self._text.left_out
        if not self._text.is_token(token) or (silent and self._tokens and self._tokens[-1] in self._text.left_out):
            return
        over = self._settled == len(self._tokens)
        self._tokens.append(token)
        if (over or not silent) and token not in self._text.byte_tokens:
            self._settled = len(self._tokens)

    def _forget(self, text: str) -> None:
        """Keep no more tokens than are needed to know what later ones read like."""
        kept = self._tokens[-_CONTEXT:]
        again = self._text.decode(kept)
        if not again.strip():  # some decoders strip spaces at the beginning: what comes before these stays
            half = _CONTEXT // 2
            left_out = [token for token in kept[:half] if token in self._text.left_out]
            kept = self._tokens[:-_CONTEXT] + left_out[:1] + kept[half:]
            again = self._text.decode(kept)
        unsaid = text[self._said :]
        if again.endswith(unsaid):
            self._tokens, self._settled = kept, len(kept)
            self._said = len(again) - len(unsaid)


class OrderedStream:
    """Writes responses in order: the first one that is not finished as it grows, later ones when their turn comes.

    Args:
        titles: written above each response; "" for none.
        write: takes pieces of text.
    """

    def __init__(self, titles: Sequence[str], text: TokenText, write: Callable[[str], None]) -> None:
        self._titles, self._of_tokens, self._write = titles, text, write
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
            self._text = Detokenizer(self._of_tokens)
            if self._titles[self._current]:
                self._write(f"{self._titles[self._current]}\n")
            self._say()

    def _say(self, last: bool = False) -> None:
        text = self._text.feed(self._unsaid[self._current], last)
        self._unsaid[self._current] = []
        if text:
            self._write(text)
