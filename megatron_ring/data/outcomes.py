"""What responses have shown of each prompt, and which prompts are worth sampling again.

Two settings, both decided when a prompt's turn comes in its shuffled epoch, so that what comes next depends on the state
alone: a prompt is dropped once N of its groups in a row had all rewards equal (all right or all wrong: no gradient); and
with a curriculum it is taken with probability max(floor, 4 r (1 - r)), r its running solve rate: the variance of a
right-or-wrong reward, relative to its largest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import solve_rate

KEPT_OF_RATE = 0.5  # what a prompt's running solve rate keeps of itself at each of its groups


class Outcomes:
    """Of the prompts of one source.

    Args:
        records: the source's; `metadata.solve_rate` is the first running solve rate, where it is there.
        seed: of the curriculum's draws, unlike any other source's.
        drop_after: groups in a row without a signal after which a prompt is dropped (None: never).
        curriculum_floor: the least probability of a prompt under the curriculum (None: no curriculum).
    """

    def __init__(
        self, records: Sequence[PromptRecord], seed: str, drop_after: int | None, curriculum_floor: float | None
    ) -> None:
        self._seed, self._drop_after, self._floor = seed, drop_after, curriculum_floor
        self._places = {(record.domain, record.id): place for place, record in enumerate(records)}
        self._first = [solve_rate(record) for record in records]
        self._rates: dict[int, float] = {}
        self._equal: dict[int, int] = {}
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Prompts that are dropped now."""
        return self._dropped

    def rate(self, place: int) -> float | None:
        """The running solve rate of a prompt; None before anything is known."""
        return self._rates.get(place, self._first[place])

    def admits(self, place: int, epoch: int) -> bool:
        """Whether the prompt is sampled in this epoch."""
        if self._drop_after is not None and self._equal.get(place, 0) >= self._drop_after:
            return False
        rate = self.rate(place)
        if self._floor is None or rate is None:
            return True
        chance = max(self._floor, 4 * rate * (1 - rate))
        return random.Random(f"{self._seed}/{epoch}/{place}").random() < chance

    def restore_if_all_dropped(self) -> None:
        """Take every prompt back when none is left."""
        if self._dropped == len(self._places):
            self._equal.clear()
            self._dropped = 0

    def observe(self, domain: str, prompt_id: str, rewards: Sequence[float]) -> None:
        """Learn from the rewards of one group; 1 or more is solved. Prompts of other sources are passed over."""
        place = self._places.get((domain, prompt_id))
        if place is None:
            return
        if self._floor is not None:
            solved, before = sum(reward >= 1 for reward in rewards) / len(rewards), self.rate(place)
            self._rates[place] = solved if before is None else KEPT_OF_RATE * before + (1 - KEPT_OF_RATE) * solved
        if self._drop_after is not None:
            held = self._equal.get(place, 0)
            equal = held + 1 if min(rewards) == max(rewards) else 0
            self._dropped += (equal >= self._drop_after) - (held >= self._drop_after)
            self._equal[place] = equal

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as JSON: lists of [place, value]."""
        return {"rates": sorted(self._rates.items()), "equal": sorted((p, n) for p, n in self._equal.items() if n)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Know what the one knew that wrote `state`."""
        self._rates = {int(place): float(rate) for place, rate in state["rates"]}
        self._equal = {int(place): int(count) for place, count in state["equal"]}
        self._dropped = 0
        if self._drop_after is not None:
            self._dropped = sum(count >= self._drop_after for count in self._equal.values())
