"""The prompt stream: shares kept, every epoch whole, resumed exactly, refused on other data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.prompts import PromptStream, StreamPrompt
from megatron_ring.data.records import Message, PromptRecord
from megatron_ring.data.schedule import DataStage, PromptSchedule, PromptSource, single_source
from megatron_ring.errors import UserError


def records(domain: str, count: int) -> tuple[PromptRecord, ...]:
    return tuple(PromptRecord(f"p{i}", domain, f"{i}+1?", str(i + 1), {"level": i}) for i in range(count))


MATH = records("math", 7)
ONE = single_source(MATH)
SOURCES = tuple(PromptSource(name, Path(name), records(name, n)) for name, n in (("math", 7), ("code", 4), ("science", 5)))
# Two stages and a return to all: math at first, then code and science 2 : 1, then everything 5 : 2 : 3.
STAGED = PromptSchedule(
    SOURCES, (DataStage(0, (0,), (1,)), DataStage(3, (1, 2), (2, 1)), DataStage(6, (0, 1, 2), (5, 2, 3)))
)
STEPS = st.lists(st.integers(0, 9), min_size=1, max_size=12)  # prompts taken in each step


def go(stream: PromptStream, sizes: list[int], first: int = 0) -> list[StreamPrompt]:
    taken = []
    for step, size in enumerate(sizes, start=first):
        prompts = stream.take(size, step)
        for position, record in prompts:
            stream.observe([(record.domain, record.id, [float(position % 3 == 0), float(position % 5 == 0)])])
        taken += prompts
    return taken


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 10), max_size=10), seed=st.integers(0, 5))
def test_every_epoch_holds_every_prompt_once(sizes: list[int], seed: int) -> None:
    stream = PromptStream(ONE, seed)
    taken = [prompt for size in sizes for prompt in stream.take(size)]
    assert [prompt.position for prompt in taken] == list(range(sum(sizes)))
    for start in range(0, len(taken) - 6, 7):
        assert {prompt.record.id for prompt in taken[start : start + 7]} == {record.id for record in MATH}
    assert [prompt.record for prompt in taken] == [prompt.record for prompt in PromptStream(ONE, seed).take(sum(sizes))]
    assert stream.epochs == {"prompts": sum(sizes) / 7}


@settings(deadline=None)
@given(sizes=STEPS, seed=st.integers(0, 3))
def test_stages_keep_their_shares_and_every_source_its_epochs(sizes: list[int], seed: int) -> None:
    taken = go(PromptStream(STAGED, seed), sizes)
    assert [prompt.position for prompt in taken] == list(range(sum(sizes)))
    for stage, (first, end) in zip(STAGED.stages, [(0, 3), (3, 6), (6, 99)], strict=True):
        here = [prompt.record.domain for prompt in taken[sum(sizes[:first]) : sum(sizes[:end])]]
        shares = {SOURCES[i].name: share for i, share in zip(stage.sources, stage.shares, strict=True)}
        assert set(here) <= set(shares)
        for name, share in shares.items():
            for n in range(len(here) + 1):
                assert abs(here[:n].count(name) - n * share / sum(stage.shares)) < 1
    for source in SOURCES:  # over all stages: a source goes on where an earlier stage left it
        ids = [prompt.record.id for prompt in taken if prompt.record.domain == source.name]
        size = len(source.records)
        for start in range(0, len(ids), size):
            epoch = ids[start : start + size]
            assert len(set(epoch)) == len(epoch)
        assert max(Counter(ids).values(), default=0) - min(Counter(ids).values(), default=0) <= 1


@settings(deadline=None)
@given(before=STEPS, after=STEPS, drop=st.sampled_from([None, 1, 2]), floor=st.sampled_from([None, 0.1, 0.5]))
def test_resumes_exactly(before: list[int], after: list[int], drop: int | None, floor: float | None) -> None:
    stream = PromptStream(STAGED, 1, drop, floor)
    go(stream, before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(STAGED, 1, drop, floor)
    resumed.load_state_dict(state)
    assert go(resumed, after, len(before)) == go(stream, after, len(before))
    assert resumed.state_dict() == stream.state_dict()


@settings(deadline=None)
@given(saved=STEPS, more=STEPS, after=STEPS)
def test_going_back_takes_other_prompts(saved: list[int], more: list[int], after: list[int]) -> None:
    """What a rollback sees next is what an undisturbed stream would have shown next; what it knows is the checkpoint's."""
    stream, undisturbed = PromptStream(STAGED, 1, drop_after=9, curriculum_floor=0.9), PromptStream(STAGED, 1)
    go(stream, saved)
    state = stream.state_dict()
    go(stream, more, len(saved))
    place = stream.state_dict()
    stream.load_state_dict(state, keep_place=True)
    now = stream.state_dict()
    assert now["outcomes"] == state["outcomes"]
    assert {key: now[key] for key in ("position", "turns", "drawn")} == {
        key: place[key] for key in ("position", "turns", "drawn")
    }
    plain = PromptStream(STAGED, 1)
    go(plain, saved)
    before = plain.state_dict()
    go(plain, more, len(saved))
    plain.load_state_dict(before, keep_place=True)
    go(undisturbed, [*saved, *more])
    step = len(saved) + len(more)
    assert go(plain, after, step) == go(undisturbed, after, step)


def test_a_prompt_without_a_signal_is_dropped_and_comes_back_when_none_is_left() -> None:
    stream = PromptStream(ONE, 0, drop_after=2)
    for _ in range(2):
        for prompt in stream.take(7):
            equal = prompt.record.id in ("p0", "p1")
            stream.observe([("math", prompt.record.id, [1.0, 1.0] if equal else [1.0, 0.0])])
    assert stream.figures(0)["data/dropped_fraction"] == 2 / 7
    assert {prompt.record.id for prompt in stream.take(10)} == {"p2", "p3", "p4", "p5", "p6"}
    for prompt_id in ("p2", "p3", "p4", "p5", "p6"):  # a mixed group between two equal ones: they are not in a row
        stream.observe([("math", prompt_id, [0.0, 0.0])])
        stream.observe([("math", prompt_id, [0.0, 1.0])])
        stream.observe([("math", prompt_id, [0.5, 0.5])])
    assert stream.figures(0)["data/dropped_fraction"] == 2 / 7
    for prompt_id in ("p2", "p3", "p4", "p5", "p6"):
        stream.observe([("math", prompt_id, [0.0, 0.0])])
    assert stream.figures(0)["data/dropped_fraction"] == 1
    assert {prompt.record.id for prompt in stream.take(14)} == {record.id for record in MATH}
    assert stream.figures(0)["data/dropped_fraction"] == 0


def test_a_curriculum_takes_prompts_by_their_running_solve_rate() -> None:
    """Never more than once an epoch; in the long run in proportion to max(floor, 4 r (1 - r))."""
    rates = [0.0, 0.05, 0.5, 1.0, None]
    prompts = [PromptRecord(f"p{i}", "math", "?", "1", {} if r is None else {"solve_rate": r}) for i, r in enumerate(rates)]
    stream = PromptStream(single_source(prompts), 0, curriculum_floor=0.1)
    seen = Counter(prompt.record.id for prompt in stream.take(12_000))
    epochs = stream.epochs["prompts"]
    assert max(seen.values()) <= epochs + 1
    for place, expected in enumerate([0.1, 4 * 0.05 * 0.95, 1.0, 0.1, 1.0]):
        assert seen[f"p{place}"] / epochs == pytest.approx(expected, abs=0.02)
    for _ in range(20):
        stream.observe([("math", "p2", [1.0, 1.0]), ("math", "p0", [1.0, 0.0]), ("math", "p4", [0.0, 0.0])])
    before, seen = stream.epochs["prompts"], Counter(prompt.record.id for prompt in stream.take(3_000))
    epochs = stream.epochs["prompts"] - before
    for place, expected in enumerate([1.0, 4 * 0.05 * 0.95, 0.1, 0.1, 0.1]):
        assert seen[f"p{place}"] / epochs == pytest.approx(expected, abs=0.04)


def test_epochs_and_seeds_differ() -> None:
    many = single_source([record for i in range(5) for record in records(f"math{i}", 7)])
    stream = PromptStream(many, 0)
    first = [prompt.record for prompt in stream.take(35)]
    assert first != [prompt.record for prompt in stream.take(35)]
    assert first != [prompt.record for prompt in PromptStream(many, 1).take(35)]


@pytest.mark.parametrize(
    "other",
    [
        single_source(MATH[:-1]),
        single_source(MATH[::-1]),
        single_source([*MATH[:-1], PromptRecord("p6", "math", "6+1?", "8", {"level": 6})]),
        single_source([*MATH[:-1], PromptRecord("p6", "math", (Message("user", "6+1?"),), "7", {"level": 6})]),
        PromptSchedule(ONE.sources, (DataStage(0, (0,), (1,)), DataStage(4, (0,), (1,)))),
    ],
)
def test_other_data_is_refused(other: PromptSchedule) -> None:
    with pytest.raises(UserError, match="not those of the checkpoint"):
        PromptStream(other, 0).load_state_dict(PromptStream(ONE, 0).state_dict())


def test_other_mistakes() -> None:
    with pytest.raises(UserError, match="the prompt seed is 1, the checkpoint has 0"):
        PromptStream(ONE, 1).load_state_dict(PromptStream(ONE, 0).state_dict())
    with pytest.raises(UserError, match="no position"):
        PromptStream(ONE, 1).load_state_dict({})
