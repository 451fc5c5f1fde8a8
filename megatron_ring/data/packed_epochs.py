"""Epochs of packed items: planned once, shuffled anew each epoch, any step made from its numbers alone.

`PackedEpochs.batch(epoch, step)` depends on nothing but its arguments, so a resumed run needs only the two numbers.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import Generic, TypeVar

from megatron_ring.data.packing import MicroBatch
from megatron_ring.errors import UserError

Batch = TypeVar("Batch", bound=MicroBatch)


class PackedEpochs(ABC, Generic[Batch]):
    """Items of some lengths in global batches of `global_batch` micro-batches of `capacity` tokens.

    Attributes: `packs`, `steps_per_epoch`.
    """

    def __init__(self, capacity: int, global_batch: int, seed: int) -> None:
        if capacity < 2 or global_batch < 1:
            raise UserError(
                f"micro-batches of {capacity} tokens, {global_batch} a step: choose at least 2 tokens and 1 micro-batch"
            )
        self.capacity = capacity
        self.global_batch = global_batch
        self.seed = seed
        self._shuffled: tuple[int, array[int]] = (-1, array("i"))

    @abstractmethod
    def _micro_batch(self, items: Sequence[int]) -> Batch:
        """The items of these numbers, packed; without any a micro-batch of padding only."""

    def _set_plan(self, plan: Sequence[Sequence[int]]) -> None:
        """Take these packs of items."""
        self._plan = plan
        self.packs = len(plan)
        self.steps_per_epoch = -(-self.packs // self.global_batch)

    def batch(self, epoch: int, step: int, part: int = 0, parts: int = 1) -> list[Batch]:
        """The micro-batches of one step (both counted from 0), on the CPU; the last step of an epoch is filled with
        empty ones.

        With `parts` > 1 only the share of rank `part` is built: every `parts`-th micro-batch. Raises `UserError` when
        `global_batch` does not divide by `parts`, `ValueError` for a step outside the epoch.
        """
        if not 0 <= step < self.steps_per_epoch or epoch < 0 or not 0 <= part < parts:
            raise ValueError(f"no batch for epoch {epoch}, step {step} of {self.steps_per_epoch}, part {part} of {parts}")
        if self.global_batch % parts:
            raise UserError(
                f"a global batch of {self.global_batch} micro-batches does not divide among {parts} data-parallel "
                f"ranks: choose a multiple of {parts}"
            )
        order = self._order(epoch)
        first = step * self.global_batch
        return [
            self._micro_batch(self._plan[order[place]]) if place < len(order) else self._micro_batch([])
            for place in range(first + part, first + self.global_batch, parts)
        ]

    def _order(self, epoch: int) -> array[int]:
        """The order of packs in an epoch; the latest is kept because a large shuffle takes a while."""
        if self._shuffled[0] != epoch:
            order = array("i", range(self.packs))  # 4 bytes a pack
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]
