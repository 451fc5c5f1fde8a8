"""Micro-batches of a step whose tokens lie with several replicas, against those that one process makes that has them all."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.data.packing import PolicyBatch
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.rollout.records import ScoredRollout
from tests.layouts import LAYOUTS
from tests.rollout.responses import ROUTE_BYTES, as_rank_has_it, pack_rollouts, step_of

CAPACITY = 16
SHAPE = replace(RING_TINY, experts_per_token=3)
Case = tuple[list[tuple[int, int, int]], bool]  # of each response: tokens, who holds it, how many are trained; routes


def advantage_of(place: int) -> float:
    return 0.3 * place - 1.0


def packed_by_one(case: Case, rank: int, size: int, multiple: int) -> list[PolicyBatch]:
    rows, routes = case
    step = step_of([n for n, _, _ in rows], [holder for _, holder, _ in rows], routes=routes)
    sequences = []
    for place, (item, (_, _, trained)) in enumerate(zip(step, rows, strict=True)):
        whole, advantage = item.rollout.completion, advantage_of(place)
        noted = torch.tensor(list(whole.routes), dtype=torch.uint8).view(-1, 2, 3) if routes else None
        tokens, logprobs = list(whole.tokens), list(whole.logprobs)
        sequences.append(PolicySequence(item.rollout.prompt_tokens, tokens, logprobs, advantage, 1.0, trained, noted))
    return pack_rollouts(sequences, CAPACITY, 0, seed=5, part=rank, parts=size, multiple=multiple)


def packed_together(parallel: ParallelConfig, cases: list[Case]) -> int:
    """How many micro-batches agreed in all their fields."""
    from megatron_ring.algorithm.objectives import make_objective
    from megatron_ring.algorithm.updates import equal_budgets
    from megatron_ring.parallel import context
    from megatron_ring.rollout.packing import pack_step
    from megatron_ring.rollout.select import Selection

    here = context.initialize(parallel, RING_TINY, 0)
    nowhere = Path("nowhere")
    data = RLDataConfig(prompts=nowhere, tokenizer=nowhere, micro_batch_tokens=CAPACITY)
    config = RLConfig(run_dir=nowhere, init_from=nowhere, data=data, seed=5)
    model: Any = SimpleNamespace(ring_config=SHAPE, route_layers=range(1, 1 + ROUTE_BYTES // 3))
    agreed = 0
    for case in cases:
        step = step_of([n for n, _, _ in case[0]], [holder for _, holder, _ in case[0]], routes=case[1])
        scored: list[ScoredRollout] = as_rank_has_it(step, here.data_rank)
        advantages = [advantage_of(place) for place in range(len(step))]
        trained = [count for _, _, count in case[0]]
        selection = Selection(scored, advantages, trained, None, equal_budgets(trained, 1))
        (found,) = pack_step(selection, config, make_objective("c3po", 9), model, here, 0)
        wanted = packed_by_one(case, here.data_rank, here.data_size, parallel.tensor)
        assert len(found) == len(wanted)
        for batch, other in zip(found, wanted, strict=True):
            for field in fields(PolicyBatch):
                mine, theirs = getattr(batch, field.name), getattr(other, field.name)
                assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs)), field.name
            agreed += int(batch.loss_mask.any())
    return agreed


@st.composite
def cases_of(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=9))
    return [(n, holder, draw(st.integers(0, n))) for n, holder in lengths], draw(st.booleans())


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "dp4"])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(cases_of(), min_size=5, max_size=20))
def test_every_rank_packs_what_one_process_would(run_on: Any, layout: str, cases: list[Case]) -> None:
    processes, parallel = {**LAYOUTS, "dp4": (4, ParallelConfig())}[layout]
    size = parallel.data(processes)
    drawn = [([(n, holder % size, trained) for n, holder, trained in rows], routes) for rows, routes in cases]
    agreed = run_on(processes, packed_together, parallel, drawn)
    assert sum(agreed) > 0 or all(not trained for rows, _ in drawn for _, _, trained in rows)
