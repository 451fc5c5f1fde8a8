"""When a response is over. The tokens that ended it stay in it: nothing that was sampled is lost."""

from __future__ import annotations

from collections.abc import Sequence as Sequence_
from typing import Protocol

from megatron_ring.config.sampling import RequestSampling
from megatron_ring.errors import UserError
from megatron_ring.sampler.completion import FinishReason

_CUT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of a character whose bytes are not all there


class Decode(Protocol):
    """Text of token ids, with or without special tokens."""

    def __call__(self, tokens: Sequence_[int], skip_special: bool = True) -> str: ...


class Answer(Protocol):
    """What is looked at of a response: `sampler.requests.Sequence` is one."""

    @property
    def tokens(self) -> Sequence_[int]:
        """What has been sampled."""
        ...

    @property
    def longest(self) -> int:
        """Tokens that it may have, at most."""
        ...


class StopConditions:
    """The end-of-sequence token, further stop tokens, stop strings, a tail that repeats itself, the longest length; the
    first that holds gives the reason.

    Args:
        decode: needed for stop strings only.

    Raises:
        UserError: stop strings without `decode`.
    """

    def __init__(self, sampling: RequestSampling, eos_id: int, decode: Decode | None = None) -> None:
        self.sampling, self.eos_id, self.decode = sampling, eos_id, decode
        self.stop_tokens = frozenset(sampling.stop_token_ids)
        # A token that is not special is at least one byte of text, and the text of a few tokens before it may depend on
        # where decoding begins (a cut character, a leading space): the window for a stop string is its bytes and some more.
        self.window = 8 + max((len(text.encode()) for text in sampling.stop_strings), default=0)
        if sampling.stop_strings and decode is None:
            raise UserError("--sampling.stop-strings: this sampler has no tokenizer to decode with")

    def reason(self, sequence: Answer) -> FinishReason | None:
        """Why `sequence` ends with the token it just took; None when it goes on."""
        tokens = sequence.tokens
        if tokens[-1] == self.eos_id:
            return "stop"
        if tokens[-1] in self.stop_tokens:
            return "stop_token"
        if self.sampling.stop_strings and self._holds_stop_string(tokens, 0):
            return "stop_string"
        if self.sampling.repetition_tokens and self._repeats(tokens):
            return "repetition"
        return "length" if len(tokens) >= sequence.longest else None

    def may_end(self, sequence: Answer, tokens: Sequence_[int]) -> bool:
        """Whether `reason` could end `sequence` within `tokens`, its next ones; true in doubt."""
        full = len(sequence.tokens) + len(tokens) >= sequence.longest
        if full or self.eos_id in tokens or not self.stop_tokens.isdisjoint(tokens):
            return True
        if self.sampling.repetition_tokens and self._may_repeat(sequence.tokens, tokens):
            return True
        if not self.sampling.stop_strings:
            return False
        # Where a token ends inside a character its text is not what it will be: in doubt.
        cut = any(_CUT in text for text in self.sampling.stop_strings)
        return cut or self._holds_stop_string([*sequence.tokens[-16 * self.window :], *tokens], len(tokens))

    def _holds_stop_string(self, tokens: Sequence_[int], more: int) -> bool:
        """Whether a stop string is in the text of the last tokens, as far back as one that ends with one of the last
        1 + `more` may begin. The decoded tail, not token ids: it may begin and end inside tokens. It may also name special
        ones, or have some between its own."""
        assert self.decode is not None
        written = self.decode(tokens[-self.window - more :], skip_special=False)
        if any(text in written for text in self.sampling.stop_strings):
            return True
        left_out = self._text(tokens, more)
        return any(text in left_out for text in self.sampling.stop_strings)

    def _text(self, tokens: Sequence_[int], more: int) -> str:
        """The text of the last `more` tokens and the end of that before, without special tokens, long enough for any stop
        string; where that takes more than sixteen windows of tokens, most of them special, no longer than these give."""
        assert self.decode is not None
        end, count = len(tokens) - more, self.window
        while True:
            start = max(0, end - count)
            text = self.decode(tokens[start:end])
            if len(text.encode()) >= self.window or count >= min(end, 16 * self.window):
                return text if more == 0 else self.decode(tokens[start:])
            count *= 2

    def _repeats(self, tokens: Sequence_[int]) -> bool:
        """Whether the last `repetition_tokens` are one n-gram over and over, n at most `repetition_ngram`."""
        span = self.sampling.repetition_tokens
        return len(tokens) >= span and self._is_repetition(tokens[-span:])

    def _may_repeat(self, tokens: Sequence_[int], more: Sequence_[int]) -> bool:
        """Whether `_repeats` could hold after some of `more`: what all its tails have in common must be a repetition."""
        span = self.sampling.repetition_tokens
        if len(tokens) + len(more) < span:
            return False
        common = span - len(more)
        return common <= 0 or self._is_repetition(tokens[-common:])

    def _is_repetition(self, tail: Sequence_[int]) -> bool:
        """Whether `tail` is one n-gram over and over, n as a tail of `repetition_tokens` may have it."""
        longest = min(self.sampling.repetition_ngram, self.sampling.repetition_tokens // 2)
        return any(n >= len(tail) or (tail[-1 - n] == tail[-1] and tail[n:] == tail[:-n]) for n in range(1, longest + 1))
