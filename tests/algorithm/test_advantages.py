from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.algorithm.advantages import group_advantages, groups_that_differ
from tests.algorithm.transcription import advantages as by_the_formula


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.25, -3.0]), st.sampled_from([7, -2, 10**12, 0])), max_size=40),
    st.booleans(),
    st.booleans(),
)
def test_matches_the_formula(pairs: list[tuple[float, int]], leave_one_out: bool, std: bool) -> None:
    rewards, groups = [reward for reward, _ in pairs], [group for _, group in pairs]
    tensors = torch.tensor(rewards), torch.tensor(groups, dtype=torch.int64)
    computed = group_advantages(*tensors, baseline="leave-one-out" if leave_one_out else "mean", divide_by_std=std)
    assert computed.dtype == torch.float64
    wanted = torch.tensor(by_the_formula(rewards, groups, leave_one_out, std), dtype=torch.float64)
    torch.testing.assert_close(computed, wanted)
    if std and not leave_one_out:
        assert group_advantages(*tensors).equal(computed)  # the report's
    differ = [len({r for r, g in pairs if g == group}) > 1 for group in groups]
    assert groups_that_differ(*tensors).tolist() == differ


def test_one_correct_of_four_uses_the_population_deviation() -> None:
    computed = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(computed[0].item(), math.sqrt(3))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, 1e-30, -7e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rewards_give_exactly_zero(value: float, dtype: torch.dtype) -> None:
    rewards = torch.full((13,), value, dtype=dtype)
    assert group_advantages(rewards, torch.zeros(13, dtype=torch.int64)).eq(0).all()


def test_rewards_that_differ_by_rounding_alone_are_equal() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3], dtype=torch.float64)
    assert group_advantages(rewards, torch.zeros(3, dtype=torch.int64)).eq(0).all()


def test_neighbouring_half_precision_rewards_are_different() -> None:
    rewards = torch.tensor([1.0, 0.9921875], dtype=torch.bfloat16)
    torch.testing.assert_close(
        group_advantages(rewards, torch.zeros(2, dtype=torch.int64)), torch.tensor([1.0, -1.0], dtype=torch.float64)
    )


def test_a_group_of_one_has_no_advantage() -> None:
    for baseline in ("mean", "leave-one-out"):
        for std in (True, False):
            alone = group_advantages(torch.tensor([1.0]), torch.tensor([5]), baseline, std)  # type: ignore[arg-type]
            assert alone.tolist() == [0.0]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N\]"):
        group_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="finite"):
        group_advantages(torch.tensor([float("nan"), 0.0]), torch.zeros(2, dtype=torch.int64))
