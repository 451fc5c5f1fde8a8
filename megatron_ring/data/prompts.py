"""An endless stream of prompts, shuffled anew each epoch, that resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megatron_ring.data.records import PromptRecord, prompt_to_json
from megatron_ring.errors import UserError


class StreamPrompt(NamedTuple):
    """A prompt and its place in the endless stream, counted from 0: unique over epochs."""

    position: int
    record: PromptRecord


class PromptStream:
    """Prompts in seeded order; every epoch holds each record once. What comes next depends on the position alone."""

    def __init__(self, records: Sequence[PromptRecord], seed: int) -> None:
        """Start at the beginning of the first epoch. Raises `UserError` when there are no records."""
        if not records:
            raise UserError("the prompt stream has no prompts: give a prompt file with at least one")
        self._records = list(records)
        self._seed = seed
        self._position = 0
        self._shuffled: tuple[int, list[int]] = (-1, [])
        self._fingerprint = fingerprint(self._records)

    @property
    def epoch(self) -> float:
        """Epochs taken so far, as a fraction."""
        return self._position / len(self._records)

    def take(self, count: int) -> list[StreamPrompt]:
        """The next `count` prompts; a step may cross the border of an epoch."""
        places = range(self._position, self._position + count)
        self._position += len(places)
        return [self.at(place) for place in places]

    def at(self, position: int) -> StreamPrompt:
        """The prompt at a place of the stream, taken or not."""
        return StreamPrompt(position, self._records[self._index(position)])

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, in types that JSON can hold."""
        return {"position": self._position, "seed": self._seed, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stream that wrote `state` stopped. Raises `UserError` on other data or another seed."""
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise UserError("the saved state of the prompt stream has no position: resume from another checkpoint")
        if state.get("fingerprint") != self._fingerprint:
            raise UserError(
                f"the prompts are not those of the checkpoint (fingerprint {self._fingerprint}, saved "
                f"{state.get('fingerprint')}): resume with the same prompt files, or start a new run"
            )
        if state.get("seed") != self._seed:
            raise UserError(
                f"the prompt seed is {self._seed}, the checkpoint has {state.get('seed')}: resume with the same seed"
            )
        self._position = position

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, len(self._records))
        if self._shuffled[0] != epoch:
            order = list(range(len(self._records)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1][offset]


def fingerprint(records: Sequence[PromptRecord]) -> str:
    """A hash (32 hex digits) of the records, their order included."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(json.dumps(prompt_to_json(record), sort_keys=True).encode())
        digest.update(b"\n")
    return digest.hexdigest()
