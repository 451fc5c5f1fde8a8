"""A response as the sampler gives it: the columns of its tokens, and what ended it."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

from megatron_ring.sampler.columns import DRAWN, NAMES, TokenColumns

# An end-of-sequence token; one of the other stop tokens; a stop string; the tail repeats itself; as long as it may be.
FinishReason = Literal["stop", "stop_token", "stop_string", "repetition", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion(TokenColumns):
    """A response, whole or as far as it came. Its columns are those of `TokenColumns`; their numbers take 16 bytes a token,
    as lists of Python's numbers they would take 140.

    Of a response that another data-parallel rank holds there are `versions`, `finish_reason` and `absent` alone.

    Attributes:
        finish_reason: None where it is not finished.
        absent: names of columns that no token has: nobody asked for them, or they were not there when its first tokens
            were sampled. Every other column has a number for every token.

    Raises:
        ValueError: numbers or versions for more or fewer tokens than there are.
    """

    finish_reason: FinishReason | None = None
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for column in DRAWN:
            values = getattr(self, column.name)
            if not isinstance(values, array) or values.typecode != column.typecode:
                object.__setattr__(self, column.name, column.new(values))
            count = len(getattr(self, column.name))
            if count != (0 if column.name in self.absent else len(self.tokens)):
                raise ValueError(f"{count} {column.name} for {len(self.tokens)} response tokens")
        if len(self.tokens) not in (0, self.length):
            raise ValueError(f"versions {self.versions} for {len(self.tokens)} response tokens")

    @property
    def length(self) -> int:
        """Tokens sampled so far, here or elsewhere."""
        return sum(count for _, count in self.versions)

    def without_tokens(self) -> Completion:
        """What every rank knows of it."""
        return Completion(versions=self.versions, finish_reason=self.finish_reason, absent=self.absent)


def absent_columns(wanted: frozenset[str] | None, begun: Completion) -> tuple[str, ...]:
    """The columns that a response has not when `wanted` are asked for (None: all) and it goes on from `begun`. Its tokens it
    always has."""
    if wanted is None and not begun.absent:
        return ()
    asked = NAMES if wanted is None else wanted | {"tokens"}
    return tuple(name for name in NAMES if name not in asked or name in begun.absent)
