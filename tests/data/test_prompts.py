"""The prompt stream: every epoch whole, resumed exactly, refused on other data."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.prompts import PromptStream
from megatron_ring.data.records import Message, PromptRecord
from megatron_ring.errors import UserError

RECORDS = [PromptRecord(f"p{index}", "math", f"{index}+1?", str(index + 1), {"level": index}) for index in range(7)]


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 10), max_size=10), seed=st.integers(0, 5))
def test_every_epoch_holds_every_prompt_once(sizes: list[int], seed: int) -> None:
    stream = PromptStream(RECORDS, seed)
    taken = [prompt for size in sizes for prompt in stream.take(size)]
    assert [prompt.position for prompt in taken] == list(range(sum(sizes)))
    for start in range(0, len(taken) - 6, 7):
        assert {prompt.record.id for prompt in taken[start : start + 7]} == {record.id for record in RECORDS}
    assert [prompt.record for prompt in taken] == [prompt.record for prompt in PromptStream(RECORDS, seed).take(sum(sizes))]
    assert stream.epoch == sum(sizes) / 7


@settings(deadline=None)
@given(before=st.integers(0, 30), after=st.integers(1, 30))
def test_resumes_exactly(before: int, after: int) -> None:
    stream = PromptStream(RECORDS, 1)
    stream.take(before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = PromptStream(RECORDS, 1)
    resumed.load_state_dict(state)
    assert resumed.take(after) == stream.take(after)


def test_epochs_and_seeds_differ() -> None:
    stream = PromptStream(RECORDS * 5, 0)
    first = [prompt.record for prompt in stream.take(35)]
    assert first != [prompt.record for prompt in stream.take(35)]
    assert first != [prompt.record for prompt in PromptStream(RECORDS * 5, 1).take(35)]


@pytest.mark.parametrize(
    "other",
    [
        RECORDS[:-1],
        RECORDS[::-1],
        [*RECORDS[:-1], PromptRecord("p6", "math", "6+1?", "8", {"level": 6})],
        [*RECORDS[:-1], PromptRecord("p6", "math", (Message("user", "6+1?"),), "7", {"level": 6})],
    ],
)
def test_other_data_is_refused(other: list[PromptRecord]) -> None:
    with pytest.raises(UserError, match="not those of the checkpoint"):
        PromptStream(other, 0).load_state_dict(PromptStream(RECORDS, 0).state_dict())


def test_other_mistakes() -> None:
    with pytest.raises(UserError, match="the prompt seed is 1, the checkpoint has 0"):
        PromptStream(RECORDS, 1).load_state_dict(PromptStream(RECORDS, 0).state_dict())
    with pytest.raises(UserError, match="no position"):
        PromptStream(RECORDS, 1).load_state_dict({})
    with pytest.raises(UserError, match="no prompts"):
        PromptStream([], 0)
