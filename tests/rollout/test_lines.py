"""Lines of responses that several replicas hold, against a plain loop over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.rollout.records import ScoredRollout
from tests.layouts import LAYOUTS
from tests.rollout.responses import step_of


def row(place: int, item: ScoredRollout) -> dict[str, Any]:
    return {"place": place, "tokens": list(item.rollout.completion.tokens), "text": "é\n" * place, **item.detail}


def written(parallel: ParallelConfig, cases: list[tuple[list[int], list[int]]], out: Path) -> list[int]:
    """Every case to a file of its own; how many rows this process was asked for."""
    from megatron_ring.parallel import context
    from megatron_ring.rollout.lines import write_lines

    here = context.initialize(parallel, RING_TINY, 0)
    asked = []

    def counted(place: int, item: ScoredRollout) -> dict[str, Any]:
        asked.append(item.rollout.holder)
        return row(place, item)

    for number, (lengths, holders) in enumerate(cases):
        write_lines(out / f"{number}.jsonl", step_of(lengths, holders), counted, here)
    assert set(asked) <= {here.data_rank}
    return [len(asked), here.leads_replica]


steps = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), max_size=9)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "dp4"])
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=st.lists(steps, min_size=5, max_size=9))
def test_lines_are_those_of_a_loop(run_on: Any, tmp_path: Path, layout: str, cases: list[Any]) -> None:
    processes, parallel = {**LAYOUTS, "dp4": (4, ParallelConfig())}[layout]
    data_size = parallel.data(processes)
    drawn = [([length for length, _ in case], [holder % data_size for _, holder in case]) for case in cases]
    asked = run_on(processes, written, parallel, drawn, tmp_path)
    for number, (lengths, holders) in enumerate(drawn):
        whole = step_of(lengths, holders)
        wanted = "".join(json.dumps(row(place, item)) + "\n" for place, item in enumerate(whole))
        assert (tmp_path / f"{number}.jsonl").read_text() == wanted
    assert sum(count for count, _ in asked) == sum(len(case) for case in cases)
    assert all(leads or not count for count, leads in asked)
