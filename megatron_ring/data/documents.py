"""Plain texts to tokens in bulk, as pretraining needs them: no template, nothing added."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

ControlTokens = Literal["split", "keep", "drop", "error"]


class DocumentEncoder:
    """Tokenises lists of texts. It can be sent to another process, which needs no transformers for it.

    Args:
        tokenizer: of transformers. Its fast backend is taken where there is one.
        control_pattern: a regular expression of all control tokens.
        control_tokens: what a text that spells one becomes. "split": ordinary tokens, as the letters are; "keep": the
            control token; "drop" and "error": not this class's to decide, see `spells_control`.
    """

    def __init__(self, tokenizer: Any, control_pattern: str, control_tokens: ControlTokens = "split") -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._serialized = None if backend is None else backend.to_str()
        self._control_pattern, self._split = control_pattern, control_tokens != "keep"
        pieces = getattr(tokenizer, "sp_model", None) if self._split else None
        self._pieces = None if pieces is None else pieces.serialized_model_proto()
        self._slow = tokenizer if backend is None and pieces is None else None
        self._ready: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": None}

    def __call__(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Token ids of each text."""
        if self._slow is not None:
            more = {"split_special_tokens": True} if self._split else {}
            return [self._slow.encode(text, add_special_tokens=False, **more) for text in texts]
        if self._ready is None:
            self._ready = self._backend()
        if self._pieces is not None:
            ids: list[Sequence[int]] = self._ready.encode(list(texts), out_type=int)
            return ids
        # Without offsets, which the other calls compute for each token.
        return [encoding.ids for encoding in self._ready.encode_batch_fast(list(texts), add_special_tokens=False)]

    def spells_control(self, text: str) -> str | None:
        """The first control token that a text spells."""
        found = re.search(self._control_pattern, text)
        return None if found is None else found[0]

    def _backend(self) -> Any:
        if self._pieces is not None:
            from sentencepiece import SentencePieceProcessor

            return SentencePieceProcessor(model_proto=self._pieces)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(str(self._serialized))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self._split
        return tokenizer


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds any of these texts, of several at one place the longest."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
