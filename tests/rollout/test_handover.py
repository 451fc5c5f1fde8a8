"""Responses that change hands, against what a process knows that has them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.sampler.completion import Completion
from tests.layouts import LAYOUTS
from tests.rollout.responses import completion

Case = list[tuple[int, int, int | None]]  # of each response: tokens, who holds it, who takes it


def as_held(whole: list[Completion], ranks: Sequence[int | None], me: int) -> list[Completion]:
    return [one if rank == me else one.without_tokens() for one, rank in zip(whole, ranks, strict=True)]


def handed_over(parallel: ParallelConfig, cases: list[tuple[Case, bool]]) -> None:
    from megatron_ring.parallel import context
    from megatron_ring.rollout.handover import hand_over

    here = context.initialize(parallel, RING_TINY, 0)
    for case, routes in cases:
        whole = [completion(length, 100 * i, routes, finished=i % 2 == 0) for i, (length, _, _) in enumerate(case)]
        holders, takers = [holder for _, holder, _ in case], [taker for _, _, taker in case]
        found = hand_over(as_held(whole, holders, here.data_rank), holders, takers, here)
        assert found == as_held(whole, takers, here.data_rank)
        assert all(one.tokens.typecode == "i" and one.logprobs.typecode == "f" for one in found)


responses = st.tuples(st.integers(0, 9), st.integers(0, 3), st.none() | st.integers(0, 3))
drawn_cases = st.lists(st.tuples(st.lists(responses, max_size=9), st.booleans()), min_size=5, max_size=20)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "dp4"])
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=drawn_cases)
def test_who_takes_a_response_gets_all_of_it(run_on: Any, layout: str, cases: list[tuple[Case, bool]]) -> None:
    processes, parallel = {**LAYOUTS, "dp4": (4, ParallelConfig())}[layout]
    size = parallel.data(processes)
    drawn = [
        ([(n, holder % size, None if taker is None else taker % size) for n, holder, taker in case], routes)
        for case, routes in cases
    ]
    run_on(processes, handed_over, parallel, drawn)


def disagreeing(length: int) -> str:
    from megatron_ring.parallel import context
    from megatron_ring.rollout.handover import hand_over

    here = context.initialize(ParallelConfig(), RING_TINY, 0)
    mine = completion(5) if here.data_rank == 0 else completion(length).without_tokens()
    try:
        hand_over([mine, completion(0)], [0, 1], [1, 0], here)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_replicas_that_disagree_are_told(run_on: Any) -> None:
    assert run_on(2, disagreeing, 5) == ["", ""]
    first, second = run_on(2, disagreeing, 6)
    assert first == "" and second
