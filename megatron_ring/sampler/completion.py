"""A response as the sampler gives it: tokens with what was noted of each, as typed arrays.

These take 16 bytes a token. As lists of Python's numbers they would take 140.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

# An end-of-sequence token; one of the other stop tokens; a stop string; the tail repeats itself; as long as it may be.
FinishReason = Literal["stop", "stop_token", "stop_string", "repetition", "length"]


def token_array(values: Iterable[int] = ()) -> array[int]:
    """Token ids as int32."""
    return array("i", values)


def number_array(values: Iterable[float] = ()) -> array[float]:
    """One number for each token as fp32, the precision that the sampler computes them in and the loss takes them in."""
    return array("f", values)


@dataclass(frozen=True, slots=True)
class Completion:
    """A response, whole or as far as it came. Any sequences of numbers will do; they are kept as typed arrays.

    Of a response that another data-parallel rank holds there are `versions` and `finish_reason` alone.

    Attributes:
        tokens: int32, what was sampled, the token that ended it and the tokens of a stop string included.
        logprobs: fp32, of each token under softmax(logits / temperature) (nats; temperature 1 for greedy decoding): what a
            training forward computes.
        processed_logprobs: fp32, of each token under what it was drawn from: that distribution cut by top-k, top-p, min-p.
        entropies: fp32, of softmax(logits / temperature) at each token (nats).
        versions: spans [weights version, tokens sampled under it], in order; a version is the number of updates before.
        finish_reason: None where it is not finished.
        routes: of each token, the experts in the pass that drew it: `model.routes.route_dtype` [tokens, L, k] as bytes, over
            the MoE layers of this process's pipeline stage. Empty where the sampler does not note them.

    Raises:
        ValueError: numbers or versions for more or fewer tokens than there are.
    """

    tokens: array[int] = field(default_factory=token_array)
    logprobs: array[float] = field(default_factory=number_array)
    processed_logprobs: array[float] = field(default_factory=number_array)
    entropies: array[float] = field(default_factory=number_array)
    versions: list[list[int]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    routes: bytes = b""

    def __post_init__(self) -> None:
        for name, make, kind in (("tokens", token_array, "i"), *((name, number_array, "f") for name in NUMBERS)):
            values = getattr(self, name)
            if not isinstance(values, array) or values.typecode != kind:
                object.__setattr__(self, name, make(values))
        for name in NUMBERS:
            count = len(getattr(self, name))
            if count != len(self.tokens):
                raise ValueError(f"{count} {name} for {len(self.tokens)} response tokens")
        if len(self.tokens) not in (0, self.length):
            raise ValueError(f"versions {self.versions} for {len(self.tokens)} response tokens")

    @property
    def length(self) -> int:
        """Tokens sampled so far, here or elsewhere."""
        return sum(count for _, count in self.versions)

    def without_tokens(self) -> Completion:
        """What every rank knows of it."""
        return Completion(versions=self.versions, finish_reason=self.finish_reason)


NUMBERS = ("logprobs", "processed_logprobs", "entropies")
