"""The share of an update's computed tokens that are not padding, against counting them in the micro-batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.algorithm.updates import equal_budgets
from megatron_ring.data.sequences import PolicySequence
from megatron_ring.rollout.metrics import packed_fraction
from megatron_ring.rollout.select import Selection
from tests.rollout.responses import pack_rollouts, step_of


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    untrained=st.sets(st.integers(1, 19)),
    parts=st.integers(1, 3),
    capacity=st.integers(43, 90),
)
def test_it_is_what_the_micro_batches_hold(lengths: list[int], untrained: set[int], parts: int, capacity: int) -> None:
    scored = step_of(lengths, [0] * len(lengths))
    trained = [0 if place in untrained else max(1, length - place % 2) for place, length in enumerate(lengths)]
    sequences = [
        PolicySequence(item.rollout.prompt_tokens, item.rollout.completion.tokens, item.rollout.completion.logprobs,
                       advantage=1.0, weight=1.0, trained=count)
        for item, count in zip(scored, trained, strict=True)
    ]  # fmt: skip
    batches = [b for part in range(parts) for b in pack_rollouts(sequences, capacity, 0, part=part, parts=parts)]
    counted = torch.stack([batch.token_mask for batch in batches])
    selection = Selection(scored, [1.0] * len(scored), trained, None, equal_budgets(trained, 1))
    assert packed_fraction(selection, counted.numel()) == pytest.approx(counted.double().mean().item())
