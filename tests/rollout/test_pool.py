"""What C3PO++ carries over: groups and their cuts."""

from __future__ import annotations

import dataclasses

from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import single_source
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.rollout.records import ScoredRollout
from megatron_ring.rollout.sampling import OpenRollout
from megatron_ring.sampler.requests import GenerationRequest
from tests.rollout.responses import completion

RECORDS = [PromptRecord(id=f"p{i}", domain="math", prompt=f"{i}?", answer=str(i)) for i in range(3)]


def stream() -> PromptStream:
    return PromptStream(single_source(RECORDS), seed=4)


def opened(prompts: list[StreamPrompt]) -> list[OpenRollout]:
    requests = [(p, k, GenerationRequest([5, p.position], 10 * p.position + k, 9)) for p in prompts for k in range(3)]
    return [OpenRollout(*made) for made in requests]


def begin(item: OpenRollout, length: int, cuts: int = 0) -> OpenRollout:
    return dataclasses.replace(item, request=item.request.continued(completion(length, finished=False)), cuts=cuts)


def finish(item: OpenRollout, length: int, reward: float = 1.0) -> ScoredRollout:
    return ScoredRollout(item.rollout(completion(length)), reward, "why", {"a": [1.5, "b"]})


def test_a_group_leaves_when_nothing_of_it_is_open() -> None:
    pool, prompts = RolloutPool(), stream().take(2)
    pool.add(opened(prompts))
    first, second = pool.open[:3], pool.open[3:]
    pool.set_open([begin(first[1], 4), *second])
    pool.finish([finish(first[0], 2), finish(first[2], 5)])
    assert pool.take_whole() == [] and pool.held_tokens() == {0: 7, 1: 0}
    pool.set_open(second[1:])
    pool.finish([finish(first[1], 6), finish(second[0], 2)])
    whole = pool.take_whole()
    assert [group.prompt for group in whole] == prompts[:1]
    assert [item.rollout.sample for item in whole[0].finished] == [0, 1, 2]  # the second came last
    assert [item.sample for item in pool.open] == [1, 2] and [item.rollout.sample for item in pool.finished] == [0]


def test_only_what_was_begun_is_cut_and_too_many_cuts_drop_it() -> None:
    pool = RolloutPool()
    pool.add(opened(stream().take(3)))
    a, b, c = (pool.open[3 * i : 3 * i + 3] for i in range(3))
    pool.set_open([begin(a[0], 4, cuts=1), begin(a[1], 2), a[2], begin(b[0], 6, cuts=1), c[0], begin(c[1], 3, cuts=1)])
    pool.finish([finish(b[1], 3), finish(b[2], 4)])
    assert pool.count_cut(max_cuts=1) == (4, 4 + 6 + 3 + 0)  # the third group has one response left, which is dropped, too
    assert [(item.prompt.position, item.sample, item.cuts) for item in pool.open] == [(0, 1, 1), (0, 2, 0)]
    assert [len(group.finished) for group in pool.take_whole()] == [2]  # the second goes on with what it has
    assert pool.count_cut(max_cuts=1) == (2, 2) and len(pool) == 0
