"""The losses against float64 loops over responses and tokens, and their gradients against derivatives by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_ring.rl.budget import select_budget
from megatron_ring.rl.c3po import c3po_loss
from megatron_ring.rl.grpo import grpo_loss, grpo_token_weights
from megatron_ring.rl.policy import clipped_surrogate, combine_metrics, kl_estimate

SETTINGS: dict[str, Any] = {"clip": 0.2, "kl_beta": 0.07, "alpha_entropy": 0.03}


@dataclass
class Step:
    """Responses of one step, float64, ragged; `flat` lays a field out as [T]."""

    logprobs: list[Tensor]
    old_logprobs: list[Tensor]
    ref_logprobs: list[Tensor]
    entropy: list[Tensor]
    advantages: list[float]

    @property
    def lengths(self) -> list[int]:
        return [len(response) for response in self.logprobs]

    def fields(self) -> dict[str, Any]:
        return {
            "old_logprobs": torch.cat(self.old_logprobs),
            "ref_logprobs": torch.cat(self.ref_logprobs),
            "entropy": torch.cat(self.entropy),
            "advantages": torch.tensor(self.advantages).double().repeat_interleave(torch.tensor(self.lengths)),
        }


def make_step(lengths: list[int], seed: int) -> Step:
    generator = torch.Generator().manual_seed(seed)

    def draw(scale: float) -> list[Tensor]:
        return [torch.randn(n, generator=generator, dtype=torch.float64) * scale for n in lengths]

    old = [-value.abs() for value in draw(1.0)]
    logprobs = [value + change for value, change in zip(old, draw(0.3), strict=True)]
    reference = [value + change for value, change in zip(old, draw(0.2), strict=True)]
    advantages = torch.randn(len(lengths), generator=generator).tolist()
    advantages[0] = 0.0
    return Step(logprobs, old, reference, [value.abs() for value in draw(1.0)], advantages)


def token_loss(step: Step, i: int, t: int) -> float:
    """-[min(r A, clip(r) A) - beta KL] - alpha H of one token, in plain arithmetic."""
    logprob, advantage = step.logprobs[i][t].item(), step.advantages[i]
    ratio = math.exp(logprob - step.old_logprobs[i][t].item())
    surrogate = min(ratio * advantage, min(max(ratio, 1 - SETTINGS["clip"]), 1 + SETTINGS["clip"]) * advantage)
    difference = step.ref_logprobs[i][t].item() - logprob
    kl = math.exp(difference) - difference - 1
    return -(surrogate - SETTINGS["kl_beta"] * kl) - SETTINGS["alpha_entropy"] * step.entropy[i][t].item()


def cut_mask(lengths: list[int], trained: list[int]) -> Tensor:
    return torch.cat([torch.arange(n) < kept for n, kept in zip(lengths, trained, strict=True)])


ragged = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(ragged, st.integers(1, 60), st.integers(0, 99))
def test_c3po_matches_the_formula_over_the_selected_tokens(lengths: list[int], budget: int, seed: int) -> None:
    step = make_step(lengths, seed)
    selection = select_budget(lengths, budget)
    loss_sum, metrics = c3po_loss(
        torch.cat(step.logprobs), mask=cut_mask(lengths, selection.trained), **step.fields(), **SETTINGS
    )
    expected = sum(token_loss(step, i, t) for i, kept in enumerate(selection.trained) for t in range(kept))
    assert loss_sum.item() == pytest.approx(expected, abs=1e-12)
    assert metrics["tokens"].item() == selection.selected_tokens


@settings(max_examples=40, deadline=None)
@given(ragged, st.integers(0, 99))
def test_grpo_matches_the_mean_over_responses(lengths: list[int], seed: int) -> None:
    step = make_step(lengths, seed)
    total = sum(lengths)
    weights = grpo_token_weights(lengths).repeat_interleave(torch.tensor(lengths))
    mask = torch.ones(total, dtype=torch.bool)
    loss_sum, _ = grpo_loss(torch.cat(step.logprobs), mask=mask, weights=weights, **step.fields(), **SETTINGS)
    expected = sum(sum(token_loss(step, i, t) for t in range(n)) / n for i, n in enumerate(lengths)) / len(lengths)
    assert loss_sum.item() / total == pytest.approx(expected, abs=1e-12)


def test_c3po_is_grpo_with_weights_of_one() -> None:
    step = make_step([4, 1, 6], 0)
    mask = cut_mask(step.lengths, [4, 1, 3])
    arguments = {"mask": mask, **step.fields(), **SETTINGS}
    c3po, c3po_metrics = c3po_loss(torch.cat(step.logprobs), **arguments)
    grpo, grpo_metrics = grpo_loss(torch.cat(step.logprobs), weights=torch.ones(11), **arguments)
    assert c3po == grpo and c3po_metrics == grpo_metrics


@settings(max_examples=25, deadline=None)
@given(ragged, st.integers(0, 99), st.integers(1, 7))
def test_any_split_into_micro_batches_adds_up(lengths: list[int], seed: int, size: int) -> None:
    step = make_step(lengths, seed)
    total = sum(lengths)
    fields = step.fields() | {
        "mask": cut_mask(lengths, select_budget(lengths, max(1, total - 2)).trained),
        "weights": grpo_token_weights(lengths).repeat_interleave(torch.tensor(lengths)),
    }
    whole = torch.cat(step.logprobs).requires_grad_()
    loss, metrics = grpo_loss(whole, **fields, **SETTINGS)
    loss.backward()
    parts = torch.cat(step.logprobs).requires_grad_()
    results = [
        grpo_loss(parts[i : i + size], **{name: field[i : i + size] for name, field in fields.items()}, **SETTINGS)
        for i in range(0, total, size)
    ]
    added = torch.stack([part_loss for part_loss, _ in results]).sum()
    added.backward()
    torch.testing.assert_close(added, loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=0)
    combined = combine_metrics(part_metrics for _, part_metrics in results)
    for name, value in metrics.items():
        torch.testing.assert_close(combined[name], value, rtol=0, atol=1e-12, msg=name)


def test_gradient_is_the_derivative_by_hand() -> None:
    step = make_step([5, 3, 1, 8], 3)
    mask = cut_mask(step.lengths, [5, 3, 1, 4])
    fields = step.fields()
    logprobs = torch.cat(step.logprobs).requires_grad_()
    fields["entropy"].requires_grad_()
    loss, _ = c3po_loss(logprobs, mask=mask, **fields, **SETTINGS)
    loss.backward()
    for t in range(len(logprobs)):
        advantage = fields["advantages"][t].item()
        ratio = math.exp(logprobs[t].item() - fields["old_logprobs"][t].item())
        difference = fields["ref_logprobs"][t].item() - logprobs[t].item()
        clipped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
        surrogate = 0.0 if clipped else ratio * advantage
        expected = -surrogate + SETTINGS["kl_beta"] * (1 - math.exp(difference))
        assert logprobs.grad is not None and fields["entropy"].grad is not None
        assert logprobs.grad[t].item() == pytest.approx(expected if mask[t] else 0.0, abs=1e-12)
        assert fields["entropy"].grad[t].item() == (-SETTINGS["alpha_entropy"] if mask[t] else 0.0)


def test_gradcheck_by_finite_differences() -> None:
    step = make_step([4, 2, 3], 11)
    fields = step.fields()
    entropy = fields.pop("entropy")
    weights = grpo_token_weights([4, 2, 3]).repeat_interleave(torch.tensor([4, 2, 3]))
    mask = cut_mask([4, 2, 3], [4, 2, 1])

    def loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
        return grpo_loss(logprobs, entropy=entropy, mask=mask, weights=weights, **fields, **SETTINGS)[0]

    assert torch.autograd.gradcheck(loss, (torch.cat(step.logprobs).requires_grad_(), entropy.requires_grad_()))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_masked_positions_may_hold_anything(garbage: float) -> None:
    step = make_step([6], 2)
    mask = torch.tensor([True, False, True, True, False, True])
    fields = step.fields()
    clean = torch.cat(step.logprobs)[mask].requires_grad_()
    fields_clean = {name: field[mask] for name, field in fields.items()}
    ones = torch.ones(6, dtype=torch.float64)
    expected, expected_metrics = grpo_loss(clean, mask=mask[mask], weights=ones[mask], **fields_clean, **SETTINGS)
    expected.backward()
    dirty = torch.cat(step.logprobs).masked_fill(~mask, garbage).requires_grad_()
    dirty_fields = {name: field.masked_fill(~mask, garbage) for name, field in fields.items()}
    dirty_fields["entropy"].requires_grad_()
    loss, metrics = grpo_loss(dirty, mask=mask, weights=ones.masked_fill(~mask, garbage), **dirty_fields, **SETTINGS)
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)
    assert dirty.grad is not None and clean.grad is not None and dirty_fields["entropy"].grad is not None
    torch.testing.assert_close(dirty.grad[mask], clean.grad)
    assert dirty.grad[~mask].eq(0).all() and dirty_fields["entropy"].grad[~mask].eq(0).all()


@pytest.mark.parametrize("drift", [200.0, -200.0, -float("inf")])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_enormous_ratios_keep_loss_and_gradient_finite(drift: float, advantage: float) -> None:
    logprobs = torch.full((3,), -1.0 + drift).requires_grad_()
    loss, _ = c3po_loss(
        logprobs,
        old_logprobs=torch.full((3,), -1.0),
        advantages=torch.full((3,), advantage),
        ref_logprobs=torch.full((3,), -1.0),
        entropy=torch.ones(3),
        mask=torch.ones(3, dtype=torch.bool),
        **SETTINGS,
    )
    loss.backward()
    assert logprobs.grad is not None
    assert loss.isfinite() and logprobs.grad.isfinite().all()


def test_metrics_are_sums_with_their_names() -> None:
    step = make_step([5, 4], 5)
    mask = cut_mask([5, 4], [5, 2])
    logprobs, fields = torch.cat(step.logprobs), step.fields()
    _, metrics = c3po_loss(logprobs, mask=mask, **fields, **SETTINGS)
    change = (logprobs - fields["old_logprobs"])[mask]
    ratio, advantages = change.exp(), fields["advantages"][mask]
    clipped = ((ratio > 1.2) & (advantages > 0)) | ((ratio < 0.8) & (advantages < 0))
    expected = {
        "tokens": 7.0,
        "policy_loss_sum": -clipped_surrogate(change, advantages, 0.2).sum().item(),
        "entropy_sum": fields["entropy"][mask].sum().item(),
        "kl_sum": kl_estimate(logprobs, fields["ref_logprobs"])[mask].sum().item(),
        "clipped_tokens": float(clipped.sum()),
        "mismatch_logprob_abs_sum": change.abs().sum().item(),
        "mismatch_logprob_abs_max": change.abs().max().item(),
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)


def test_nothing_selected_is_a_zero_with_a_gradient() -> None:
    step = make_step([3], 0)
    logprobs = torch.cat(step.logprobs).requires_grad_()
    loss, metrics = c3po_loss(logprobs, mask=torch.zeros(3, dtype=torch.bool), **step.fields(), **SETTINGS)
    loss.backward()
    assert loss == 0 and logprobs.grad is not None and logprobs.grad.eq(0).all()
    assert metrics["mismatch_logprob_abs_max"] == 0
    empty = {name: field[:0] for name, field in step.fields().items()}
    assert c3po_loss(logprobs[:0], mask=torch.zeros(0, dtype=torch.bool), **empty, **SETTINGS)[0] == 0


def test_bfloat16_inputs_are_summed_in_fp32() -> None:
    fields = {name: field.bfloat16() for name, field in make_step([3], 0).fields().items()}
    loss, metrics = c3po_loss(fields["old_logprobs"], mask=torch.ones(3, dtype=torch.bool), **fields, **SETTINGS)
    assert loss.dtype == torch.float32 and metrics["tokens"].dtype == torch.float64


def test_bad_arguments_are_refused() -> None:
    fields: dict[str, Any] = make_step([3], 0).fields() | {"mask": torch.ones(3, dtype=torch.bool), **SETTINGS}
    logprobs = torch.zeros(3)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"entropy": torch.zeros(2)}, "entropy"),
        ({"mask": torch.ones(3)}, "torch.bool"),
        ({"clip": 0.0}, "clip"),
        ({"ref_logprobs": None}, "kl_beta"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            c3po_loss(logprobs, **(fields | change))
    c3po_loss(logprobs, **(fields | {"ref_logprobs": None, "kl_beta": 0.0}))
    with pytest.raises(ValueError, match="at least 1"):
        grpo_token_weights([3, 0])
