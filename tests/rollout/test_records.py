from __future__ import annotations

import dataclasses
import random
import struct
from typing import Any

import pytest

from megatron_ring.rollout.records import Rollout, ScoredRollout
from megatron_ring.sampler.completion import Completion


def completion(**changes: Any) -> Completion:
    fields: dict[str, Any] = {
        "tokens": [5, 6, 7],
        "logprobs": [-0.1, -0.2, -0.3],
        "processed_logprobs": [-0.1, -0.1, -0.2],
        "entropies": [0.1, 0.2, 0.3],
        "versions": [[4, 2], [5, 1]],
        "finish_reason": "stop",
    }
    return Completion(**(fields | changes))


def rollout(**changes: Any) -> Rollout:
    fields: dict[str, Any] = {
        "prompt_index": 3,
        "sample": 1,
        "prompt_id": "p",
        "domain": "math",
        "prompt_tokens": [1, 2],
        "seed": 9,
        "completion": completion(),
    }
    return Rollout(**(fields | changes))


def test_a_rollout_is_frozen_and_knows_its_length() -> None:
    record = rollout()
    assert record.response_length == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 5  # type: ignore[misc]


def test_what_the_sampler_computed_keeps_its_bits() -> None:
    """fp32 numbers come as Python floats and go out as they came; ids up to the largest of int32."""
    bits = random.Random(3)
    numbers = [struct.unpack("f", struct.pack("I", bits.randrange(0x7F800000)))[0] for _ in range(2000)]
    ids = [bits.randrange(2**31) for _ in numbers]
    record = completion(
        tokens=ids, logprobs=[-x for x in numbers], processed_logprobs=numbers, entropies=numbers, versions=[[0, 2000]]
    )
    assert list(record.tokens) == ids and [-x for x in record.logprobs] == list(record.entropies) == numbers
    assert record.tokens.itemsize == record.logprobs.itemsize == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": [-0.1]}, "1 logprobs for 3"),
        ({"processed_logprobs": []}, "0 processed_logprobs for 3"),
        ({"entropies": [0.1] * 4}, "4 entropies for 3"),
        ({"versions": [[4, 2]]}, "versions .* for 3 response tokens"),
    ],
)
def test_a_wrong_completion_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        completion(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"completion": Completion(finish_reason="stop")}, "no tokens"),
        ({"sample": -1}, "sample is -1"),
        ({"completion": completion(finish_reason="abort")}, "abort"),
        ({"completion": completion(finish_reason=None)}, "finish reason None"),
    ],
)
def test_a_wrong_rollout_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(**changes)


def test_a_reward_must_be_finite() -> None:
    assert ScoredRollout(rollout(), 1.0, "correct").reward == 1.0
    with pytest.raises(ValueError, match="not finite"):
        ScoredRollout(rollout(), float("nan"), "?")
