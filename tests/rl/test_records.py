from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from megatron_ring.rl.records import Rollout, ScoredRollout


def rollout(**changes: Any) -> Rollout:
    fields: dict[str, Any] = {
        "prompt_index": 3,
        "sample": 1,
        "prompt_id": "p",
        "domain": "math",
        "prompt_tokens": [1, 2],
        "response_tokens": [5, 6, 7],
        "logprobs": [-0.1, -0.2, -0.3],
        "entropies": [0.1, 0.2, 0.3],
        "finish_reason": "stop",
        "versions": [[4, 2], [5, 1]],
        "seed": 9,
    }
    return Rollout(**(fields | changes))


def test_a_rollout_is_frozen_and_knows_its_length() -> None:
    record = rollout()
    assert record.response_length == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"response_tokens": [], "logprobs": [], "entropies": []}, "no tokens"),
        ({"logprobs": [-0.1]}, "1 logprobs for 3"),
        ({"entropies": [0.1] * 4}, "4 entropies for 3"),
        ({"sample": -1}, "sample is -1"),
        ({"versions": [[4, 2]]}, "versions .* for 3 response tokens"),
        ({"finish_reason": "abort"}, "abort"),
    ],
)
def test_a_wrong_rollout_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rollout(**changes)


def test_a_reward_must_be_finite() -> None:
    assert ScoredRollout(rollout(), 1.0, "correct").reward == 1.0
    with pytest.raises(ValueError, match="not finite"):
        ScoredRollout(rollout(), float("nan"), "?")
