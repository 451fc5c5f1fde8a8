"""What C3PO++ carries over, through the files of a checkpoint and into other layouts, against the pool that was saved."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load, save

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError
from megatron_ring.rollout.pool import RolloutPool
from megatron_ring.sampler.completion import Completion
from tests.layouts import LAYOUTS
from tests.rollout.responses import ROUTE_BYTES, completion
from tests.rollout.test_pool import begin, finish, opened, stream

SHAPE = dataclasses.replace(RING_TINY, num_layers=2)
MORE = {**LAYOUTS, "dp4": (4, ParallelConfig())}
Case = list[tuple[str, int, int]]  # of each response: open, done or gone; tokens; who holds it


def pool_of(case: Case, rank: int | None = None, stage: slice = slice(None)) -> RolloutPool:
    """The pool as data-parallel rank `rank` of a pipeline stage has it; None: with all tokens."""
    source, pool = stream(), RolloutPool()
    source.take(2)  # what is carried over need not be the first, and may be of another epoch
    pool.add(opened(source.take(len(case) // 3)))

    def here(whole: Completion, holder: int) -> Completion:
        if rank not in (None, holder):
            return whole.without_tokens()
        noted = [whole.routes[i : i + ROUTE_BYTES][stage] for i in range(0, len(whole.routes), ROUTE_BYTES)]
        return dataclasses.replace(whole, routes=b"".join(noted))

    still, done = [], []
    for place, (item, (kind, length, holder)) in enumerate(zip(pool.open, case, strict=True)):
        item = dataclasses.replace(item, holder=holder)
        whole = completion(length + (kind == "done"), 100 * place, routes=True, finished=kind == "done")
        if kind == "open":
            begun = dataclasses.replace(begin(item, length, cuts=length % 3), holder=holder)
            still.append(dataclasses.replace(begun, request=item.request.continued(here(whole, holder))))
        elif kind == "done":
            one = finish(item, 3, length / 7)
            done.append(dataclasses.replace(one, rollout=item.rollout(here(whole, holder))))
    pool.set_open(still)
    pool.finish(done)
    pool.groups = {place: group for place, group in pool.groups.items() if group.open or group.finished}
    return pool


def stage_of(here: Any) -> slice:
    """The bytes of a token's routes that a pipeline stage has: all, or one half."""
    half, stages = ROUTE_BYTES // 2, here.config.pipeline
    return slice(half * here.pipeline_rank, half * here.pipeline_rank + half) if stages == 2 else slice(None)


def saved(parallel: ParallelConfig, cases: list[Case], folder: Path) -> list[list[str]]:
    """Checkpoints step_0, step_1, …, one of each case; the names of this rank's files."""
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.unfinished import save_unfinished

    here = context.initialize(parallel, SHAPE, seed=0)
    model, names = build_model(SHAPE, here), []
    with CheckpointSaver(folder, here) as saver:
        for step, case in enumerate(cases):
            files = save_unfinished(pool_of(case, here.data_rank, stage_of(here)), here)
            saver.save(step, model, None, {}, files=files)
            names.append(sorted(files))
    return names


def loaded(parallel: ParallelConfig, cases: list[Case], folder: Path) -> list[list[int]]:
    """Of each case, which of all responses this rank holds; all the rest is compared here."""
    from megatron_ring.parallel import context
    from megatron_ring.rollout.unfinished import load_unfinished

    here, found = context.initialize(parallel, SHAPE, seed=0), []
    stage, rank = stage_of(here), here.data_rank
    for step, case in enumerate(cases):
        pool = load_unfinished(folder / f"step_{step}", stream(), opened, stage, here)
        moved = [(kind, n, holder % here.data_size) for kind, n, holder in case]
        wanted = pool_of(moved, rank, stage)
        assert list(pool.groups.items()) == list(wanted.groups.items())
        completions = [item.request.begun for item in pool.open] + [item.rollout.completion for item in pool.finished]
        found.append([i for i, one in enumerate(completions) if one.tokens])
    return found


states = st.tuples(st.sampled_from(["open", "done", "gone"]), st.integers(0, 6), st.integers(0, 3))
drawn_cases = st.lists(st.lists(states, min_size=6, max_size=6), min_size=2, max_size=4)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("before", "after"), [("dp2", "dp2"), ("dp2", "one"), ("dp2", "pp2"), ("pp2", "dp2"), ("dp4", "tp2"), ("dp4", "dp2")]
)
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases=drawn_cases)
def test_through_a_checkpoint_it_is_the_same(
    run_on: Any, tmp_path: Path, before: str, after: str, cases: list[Case]
) -> None:
    (many, parallel), (few, later) = MORE[before], MORE[after]
    cases = [[(kind, n, holder % parallel.data(many)) for kind, n, holder in case] for case in cases]
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    names = run_on(many, saved, parallel, cases, folder)
    found = run_on(few, loaded, later, cases, folder)
    for step, case in enumerate(cases):
        left = [(kind, n, holder) for kind, n, holder in case if kind != "gone"]
        holders = sorted({holder for _, _, holder in left})
        assert sorted(name for rank in names for name in rank[step]) == [f"unfinished_{h}.safetensors" for h in holders]
        begun = sum(kind == "done" or n > 0 for kind, n, _ in left)
        held = {rank: one for rank, one in enumerate(found)}
        replicas = later.data(few)
        assert sum(len(one[step]) for one in held.values()) == begun * few // replicas


def test_a_file_of_before_is_read(tmp_path: Path) -> None:
    """One file for all replicas, its numbers in float64."""
    from megatron_ring.rollout.unfinished import NAME, _routes, from_bytes, held_by, rebuilt, to_bytes

    case: Case = [("open", 4, 0), ("done", 3, 0), ("open", 0, 0), ("gone", 0, 0), ("done", 1, 0), ("open", 2, 0)]
    held = held_by(pool_of(case), 0)
    file = load(to_bytes(held, _routes(held)))
    index = json.loads(bytes(file["index"].numpy()))
    for entry in index:
        del entry["absent"]
        if entry["finish_reason"] is None:
            del entry["finish_reason"]
    values = torch.stack([file.pop(name) for name in ("logprobs", "processed_logprobs", "entropies")])
    file |= {"values": values.double(), "index": torch.tensor(list(json.dumps(index).encode()), dtype=torch.uint8)}
    again = from_bytes(save(file), slice(3, 6))
    whole = {(about["position"], about["sample"]): one for about, one in again}
    pool = rebuilt([[about for about, _ in again]], whole, stream(), opened)
    assert pool.groups == pool_of(case, 0, slice(3, 6)).groups
    assert NAME.fullmatch("unfinished.safetensors") and not NAME.fullmatch("unfinished_1.safetensors.tmp")


def damaged(folder: Path) -> str:
    from megatron_ring.parallel import context
    from megatron_ring.rollout.unfinished import load_unfinished

    here = context.initialize(ParallelConfig(), SHAPE, seed=0)
    try:
        load_unfinished(folder / "step_0", stream(), opened, slice(None), here)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.distributed
def test_damage_of_one_file_is_told_by_every_rank(run_on: Any, tmp_path: Path) -> None:
    case: Case = [("open", 4, 0), ("done", 3, 1), ("open", 0, 0)]
    run_on(2, saved, ParallelConfig(), [case], tmp_path)
    assert run_on(2, damaged, tmp_path) == ["", ""]
    file = tmp_path / "step_0" / "unfinished_1.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    told = run_on(2, damaged, tmp_path)
    assert told[0] == told[1] and "unfinished_1.safetensors" in told[0]
