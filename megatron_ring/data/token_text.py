"""What a tokenizer says of the text of its tokens, for those who make text of them one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class TokenText:
    """How tokens become text.

    Attributes:
        decode: text of any tokens in a row.
        left_out: tokens of which it writes nothing, as special ones.
        known: the tokens that there are; other ids are as if they were not there. None: all ids are tokens.
        byte_tokens: tokens of one byte whose text is known when the next token is none of them: such a decoder looks at a
            run of them as a whole, and one broken byte breaks all of it.
    """

    decode: Decode
    left_out: frozenset[int] = frozenset()
    known: frozenset[int] | None = None
    byte_tokens: frozenset[int] = frozenset()

    def is_token(self, token: int) -> bool:
        """Whether there is such a token. A model may have more ids than its tokenizer."""
        return self.known is None or token in self.known


def bytes_in_runs(decode: Decode, vocabulary: Mapping[str, int]) -> frozenset[int]:
    """The tokens of bytes where a run of them is decoded as a whole (`ByteFallback` of Hugging Face's tokenizers), not one
    character after another (sentencepiece)."""
    ids = {byte: token for byte in range(256) if (token := vocabulary.get(f"<0x{byte:02X}>")) is not None}
    if len(ids) < 256:
        return frozenset()
    whole, broken = ([ids[byte] for byte in text] for text in ("é".encode(), "é".encode() + b"\xc3"))
    runs = decode(whole) == "é" and not decode(broken).startswith("é")
    return frozenset(ids.values()) if runs else frozenset()
