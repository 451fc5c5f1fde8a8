"""Epochs of packed items: planned once, shuffled anew each epoch, any step made from its numbers alone.

`PackedEpochs.batch(epoch, step)` depends on nothing but its arguments, so a resumed run needs only the two numbers. Which
packs a step has does not depend on how many of them go into one micro-batch.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Generic, TypeVar

from megatron_ring.data.packing import MicroBatch
from megatron_ring.errors import UserError

Batch = TypeVar("Batch", bound=MicroBatch)


class PackedEpochs(ABC, Generic[Batch]):
    """Items of some lengths in global batches of `global_batch` packs of `capacity` tokens.

    Attributes: `packs`, `steps_per_epoch`.
    """

    def __init__(self, capacity: int, global_batch: int, seed: int) -> None:
        if capacity < 2 or global_batch < 1:
            raise UserError(f"packs of {capacity} tokens, {global_batch} a step: choose at least 2 tokens and 1 pack")
        self.capacity = capacity
        self.global_batch = global_batch
        self.seed = seed
        self._shuffled: tuple[int, array[int]] = (-1, array("i"))

    @abstractmethod
    def _micro_batch(self, items: Sequence[int], tokens: int) -> Batch:
        """The items of these numbers, packed into so many tokens; without any a micro-batch of padding only."""

    def _set_plan(self, plan: Sequence[Sequence[int]]) -> None:
        """Take these packs of items."""
        self._plan = plan
        self.packs = len(plan)
        self.steps_per_epoch = -(-self.packs // self.global_batch)

    def batch(self, epoch: int, step: int, part: int = 0, parts: int = 1, sizes: Sequence[int] | None = None) -> list[Batch]:
        """The micro-batches of one step (both counted from 0), on the CPU; the last step of an epoch is filled with
        padding.

        With `parts` > 1 only the share of rank `part` is built: every `parts`-th pack. Raises `UserError` when
        `global_batch` does not divide by `parts`, `ValueError` for a step outside the epoch.

        Args:
            sizes: how many packs of the share go into each micro-batch, all of them together; one each without.
        """
        if not 0 <= step < self.steps_per_epoch or epoch < 0 or not 0 <= part < parts:
            raise ValueError(f"no batch for epoch {epoch}, step {step} of {self.steps_per_epoch}, part {part} of {parts}")
        if self.global_batch % parts:
            raise UserError(
                f"a global batch of {self.global_batch} packs does not divide among {parts} data-parallel ranks: choose a "
                f"multiple of {parts}"
            )
        order = self._order(epoch)
        first = step * self.global_batch
        share = [
            self._plan[order[place]] if place < len(order) else ()
            for place in range(first + part, first + self.global_batch, parts)
        ]
        bounds = list(accumulate([1] * len(share) if sizes is None else sizes, initial=0))
        if bounds[-1] != len(share):
            raise ValueError(f"micro-batches of {sizes} packs: the share of a rank is {len(share)}")
        return [
            self._micro_batch([item for pack in share[begin:end] for item in pack], (end - begin) * self.capacity)
            for begin, end in pairwise(bounds)
        ]

    def _order(self, epoch: int) -> array[int]:
        """The order of packs in an epoch; the latest is kept because a large shuffle takes a while."""
        if self._shuffled[0] != epoch:
            order = array("i", range(self.packs))  # 4 bytes a pack
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._shuffled = (epoch, order)
        return self._shuffled[1]
