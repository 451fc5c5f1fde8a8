"""How many packed sequences of a step go through the model together. Imports no torch."""

from __future__ import annotations

from typing import Literal

from megatron_ring.config.checks import require


def check_micro_batch(tokens: int | Literal["auto"], length: int, flag: str) -> None:
    """Raise `UserError` for micro-batches that are shorter than one packed sequence, whose length `flag` names."""
    require(
        tokens == "auto" or tokens >= length,
        f"--data.micro-batch-tokens is {tokens}, below {flag} {length}: a micro-batch holds a whole sequence",
    )


def sizes_of(packs: int, tokens: int | Literal["auto"], length: int, pipeline: int) -> list[int]:
    """How many of a rank's `packs` of some length go into each micro-batch of at most so many tokens, once these are
    chosen."""
    assert tokens != "auto", "chosen when a run opens"
    return packs_of_micro_batches(packs, tokens // length, equal=pipeline > 1)


def packs_of_micro_batches(packs: int, most: int, equal: bool) -> list[int]:
    """How many of `packs` go into each micro-batch: as few micro-batches as can be with up to `most`, one apart in size.
    `equal`: all of one size, as the stages of a pipeline have to agree on one; then there may be more of them."""
    count = -(-packs // most)
    if equal:
        count = next(more for more in range(count, packs + 1) if packs % more == 0)
    return [packs // count + (place < packs % count) for place in range(count)]
