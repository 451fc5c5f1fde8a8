"""Made-up responses of a step for tests: what each token has follows from its place, so that nothing can be mistaken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from megatron_ring.data.packing import PolicyBatch, plan_rollouts, policy_batch
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.sampler.columns import NAMES
from megatron_ring.sampler.completion import Completion

ROUTE_BYTES = 6  # of a token: two layers of three experts


def completion(length: int, first: int = 0, routes: bool = False, finished: bool = True) -> Completion:
    """`length` tokens first, first + 1, …, each with numbers of its own."""
    ids = range(first, first + length)
    numbers = ([-(scale + i) / 7 for i in ids] for scale in (0.5, 0.25, -9e4))
    noted = bytes((3 * i + j) % 251 for i in ids for j in range(ROUTE_BYTES)) if routes else b""
    versions = [[1, length - length // 2], [4, length // 2]] if length > 1 else [[4, length]] if length else []
    columns: dict[str, Any] = dict(zip(NAMES, [[*ids], *numbers], strict=False))  # of columns that came later: tokens again
    columns |= {name: [*ids] for name in NAMES if name not in columns}
    return Completion(**columns, versions=versions, finish_reason="stop" if finished else None, routes=noted)


def step_of(lengths: list[int], holders: list[int], samples: int = 3, routes: bool = False) -> list[ScoredRollout]:
    """A step's responses in order, `samples` to each prompt, whole."""
    made = []
    for place, (length, holder) in enumerate(zip(lengths, holders, strict=True)):
        prompt, sample = divmod(place, samples)
        response = completion(length, 1000 * place, routes)
        tokens = [7 + prompt, 8 + prompt, 9][: 1 + prompt % 3]
        rollout = Rollout(prompt, sample, f"p{prompt}", "math", tokens, place, response, holder)
        made.append(ScoredRollout(rollout, place % 3 / 2, "why", {"place": place} if place % 2 else {}))
    return made


def as_rank_has_it(step: list[ScoredRollout], rank: int) -> list[ScoredRollout]:
    """The same where data-parallel rank `rank` does not have the tokens that others hold."""

    def without_tokens(rollout: Rollout) -> Rollout:
        return replace(rollout, completion=rollout.completion.without_tokens())

    return [item if item.rollout.holder == rank else replace(item, rollout=without_tokens(item.rollout)) for item in step]


def pack_rollouts(
    items: Sequence[PolicySequence], capacity: int, pad_id: int, seed: int = 0, part: int = 0, parts: int = 1,
    multiple: int = 1,
) -> list[PolicyBatch]:  # fmt: skip
    """The micro-batches of rank `part` of `parts`, where one process has all rollouts."""
    items = [item for item in items if item.trained]
    plans, tokens = plan_rollouts([item.length for item in items], capacity, seed, parts, multiple)
    return [policy_batch([items[index] for index in plan], tokens, pad_id) for plan in plans[part]]
