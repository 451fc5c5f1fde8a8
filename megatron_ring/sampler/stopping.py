"""When a response is over. The tokens that ended it stay in it: nothing that was sampled is lost."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from typing import Protocol

from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import UserError
from megatron_ring.sampler.completion import FinishReason
from megatron_ring.sampler.requests import Sequence


class Decode(Protocol):
    """Text of token ids, with or without special tokens."""

    def __call__(self, tokens: Sequence_[int], skip_special: bool = True) -> str: ...


class StopConditions:
    """The end-of-sequence token, further stop tokens, stop strings, a tail that repeats itself, the longest length; the
    first that holds gives the reason.

    Args:
        decode: needed for stop strings only.

    Raises:
        UserError: stop strings without `decode`.
    """

    def __init__(self, sampling: SamplingConfig, eos_id: int, decode: Decode | None = None) -> None:
        self.sampling, self.eos_id, self.decode = sampling, eos_id, decode
        self.stop_tokens = frozenset(sampling.stop_token_ids)
        # A token that is not special is at least one byte of text, and the text of a few tokens before it may depend on
        # where decoding begins (a cut character, a leading space): the window for a stop string is its bytes and some more.
        self.window = 8 + max((len(text.encode()) for text in sampling.stop_strings), default=0)
        if sampling.stop_strings and decode is None:
            raise UserError("--sampling.stop-strings: this sampler has no tokenizer to decode with")

    def reason(self, sequence: Sequence) -> FinishReason | None:
        """Why `sequence` ends with the token it just took; None when it goes on."""
        tokens = sequence.tokens
        if tokens[-1] == self.eos_id:
            return "stop"
        if tokens[-1] in self.stop_tokens:
            return "stop_token"
        if self.sampling.stop_strings and self.decode is not None:
            # The decoded tail, not token ids: a stop string may begin and end inside tokens. It may also name special ones.
            tails = self.decode(tokens[-self.window :], skip_special=False), self._text(tokens)
            if any(text in tail for text in self.sampling.stop_strings for tail in tails):
                return "stop_string"
        if self.sampling.repetition_tokens and self._repeats(tokens):
            return "repetition"
        return "length" if len(tokens) >= sequence.request.max_new_tokens else None

    def _text(self, tokens: Sequence_[int]) -> str:
        """The end of the text without special tokens, long enough for any stop string; where it takes more than sixteen
        windows of tokens, most of them special, no longer than these give."""
        assert self.decode is not None
        count, most = self.window, min(len(tokens), 16 * self.window)
        while len((tail := self.decode(tokens[-count:])).encode()) < self.window and count < most:
            count *= 2
        return tail

    def may_end(self, sequence: Sequence, tokens: Sequence_[int]) -> bool:
        """Whether `reason` could end `sequence` within `tokens`, its next ones; true in doubt."""
        if self.sampling.stop_strings or self.sampling.repetition_tokens:
            return True
        full = len(sequence.tokens) + len(tokens) >= sequence.request.max_new_tokens
        return full or self.eos_id in tokens or not self.stop_tokens.isdisjoint(tokens)

    def _repeats(self, tokens: Sequence_[int]) -> bool:
        """Whether the last `repetition_tokens` are one n-gram over and over, n at most `repetition_ngram`."""
        span = self.sampling.repetition_tokens
        if len(tokens) < span:
            return False
        tail = tokens[-span:]
        return any(
            tail[-1 - n] == tail[-1] and tail[n:] == tail[:-n]
            for n in range(1, min(self.sampling.repetition_ngram, span // 2) + 1)
        )
