r"""Diversity of a group's final answers: rewards a response whose `\boxed{}` few others of its prompt share.

The mean over a group is Simpson's index: the probability that two of its answers differ. Answers are compared as text
without white space: 0.5 and 1/2 are two answers. Meant as a part with a small weight beside a part that checks the answer:
alone it rewards any answer that is rare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from megatron_ring.rewards.batch import BatchItem
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.interface import Reward


class Diversity:
    """The share of the group's other answers that differ; 0 without a final answer, and without another one."""

    def __init__(self, resources: object) -> None:
        """Needs no resources."""

    def score(self, items: Sequence[BatchItem]) -> list[Reward]:
        """See `BatchScorer`."""
        answers = [final_answer(item.request.response) for item in items]
        counts: dict[int, Counter[str]] = {}
        for item, answer in zip(items, answers, strict=True):
            counts.setdefault(item.group, Counter()).update([] if answer is None else [answer])
        return [self._reward(answer, counts[item.group]) for item, answer in zip(items, answers, strict=True)]

    @staticmethod
    def _reward(answer: str | None, counts: Counter[str]) -> Reward:
        if answer is None:
            return Reward(0.0, "no final answer")
        others = counts.total() - 1
        if others == 0:
            return Reward(0.0, "no other answer to compare with")
        differing = counts.total() - counts[answer]
        return Reward(differing / others, f"{differing} of {others} other answers differ")


def final_answer(response: str) -> str | None:
    """The last boxed text without white space."""
    boxed = last_boxed(response)
    return None if boxed is None else "".join(boxed.split())
