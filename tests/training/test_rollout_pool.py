"""What C3PO++ carries over: groups and their cuts, and the way through a checkpoint's file."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import single_source
from megatron_ring.rl.records import Completion, ScoredRollout
from megatron_ring.sampler.requests import GenerationRequest
from megatron_ring.sampler.rollouts import OpenRollout
from megatron_ring.training.rollout_pool import RolloutPool

RECORDS = [PromptRecord(id=f"p{i}", domain="math", prompt=f"{i}?", answer=str(i)) for i in range(3)]


def stream() -> PromptStream:
    return PromptStream(single_source(RECORDS), seed=4)


def opened(prompts: list[StreamPrompt]) -> list[OpenRollout]:
    requests = [(p, k, GenerationRequest([5, p.position], 10 * p.position + k, 9)) for p in prompts for k in range(3)]
    return [OpenRollout(*made) for made in requests]


def completion(length: int, versions: list[list[int]], reason: Any = None) -> Completion:
    numbers = [[-(i + 1) / 3 * scale for i in range(length)] for scale in (1.0, 1.1, -0.7)]
    routes = bytes(i % 251 for i in range(6 * length))  # six of a token: two layers of three experts
    return Completion([7 + i for i in range(length)], *numbers, versions, reason, routes)  # type: ignore[call-arg]


def begin(item: OpenRollout, length: int, cuts: int = 0) -> OpenRollout:
    versions = [[2, length]] if length else []
    return dataclasses.replace(item, request=item.request.continued(completion(length, versions)), cuts=cuts)


def finish(item: OpenRollout, length: int, reward: float = 1.0) -> ScoredRollout:
    done = completion(length, [[1, 1], [3, length - 1]], "stop")
    return ScoredRollout(item.rollout(done), reward, "why", {"a": [1.5, "b"]})


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
    assert [group.prompt for group in whole] == prompts[:1] and len(whole[0].finished) == 3
    assert [item.sample for item in pool.open] == [1, 2] and [item.rollout.sample for item in pool.finished] == [0]


def test_only_what_was_begun_is_cut_and_too_many_cuts_drop_it() -> None:
    pool = RolloutPool()
    pool.add(opened(stream().take(3)))
    a, b, c = (pool.open[3 * i : 3 * i + 3] for i in range(3))
    pool.set_open([begin(a[0], 4, cuts=1), begin(a[1], 2), a[2], begin(b[0], 6, cuts=1), c[0], begin(c[1], 3, cuts=1)])
    pool.finish([finish(b[1], 3), finish(b[2], 4)])
    assert pool.age(max_cuts=1) == (4, 4 + 6 + 3 + 0)  # the third group has one response left, which is dropped, too
    assert [(item.prompt.position, item.sample, item.cuts) for item in pool.open] == [(0, 1, 1), (0, 2, 0)]
    assert [len(group.finished) for group in pool.take_whole()] == [2]  # the second goes on with what it has
    assert pool.age(max_cuts=1) == (2, 2) and len(pool) == 0


states = st.lists(st.tuples(st.sampled_from(["open", "done", "gone"]), st.integers(0, 6)), min_size=6, max_size=6)


@given(states)
def test_through_bytes_it_is_the_same_token_for_token(chosen: list[tuple[str, int]]) -> None:
    pool, source = RolloutPool(), stream()
    source.take(2)  # what is carried over need not be the first, and may be of another epoch
    pool.add(opened(source.take(2)))
    items = pool.open
    pool.set_open([begin(item, n, cuts=n % 3) for item, (kind, n) in zip(items, chosen, strict=True) if kind == "open"])
    finished = [finish(item, n + 2, n / 7) for item, (kind, n) in zip(items, chosen, strict=True) if kind == "done"]
    pool.finish(finished)
    again = RolloutPool.from_bytes(pool.to_bytes(), stream(), opened)
    assert again.open == pool.open and again.finished == pool.finished
    assert [group for group in again.groups.values()] == [g for g in pool.groups.values() if g.open or g.finished]
    second = RolloutPool.from_bytes(pool.to_bytes(), stream(), opened, slice(3, 6))  # of a pipeline stage
    assert second.routes().tolist() == pool.routes()[:, 3:6].tolist()
