"""The objectives against `transcription.py`: value and gradient, however a step is dealt to ranks, micro-batches, chunks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_ring.algorithm.corrections import Correction, IcePop, KPop, TruncatedImportance
from megatron_ring.algorithm.gspo import GSPO
from megatron_ring.algorithm.kl import kl_estimate
from megatron_ring.algorithm.objective import Objective, clipped_surrogate
from megatron_ring.algorithm.objectives import make_objective
from megatron_ring.algorithm.policy import combine_metrics, policy_loss
from megatron_ring.algorithm.sequences import sequence_log_ratios, sequence_sums
from megatron_ring.algorithm.tokens import LossSettings, PolicyTokens
from tests.algorithm.transcription import LOSSES, Constants, Response

CORRECTIONS: dict[str, Correction] = {
    "tis": TruncatedImportance(cap=1.1),
    "icepop": IcePop(low=0.8, high=1.2),
    "kpop": KPop(phi=0.01),
}
SETTINGS = LossSettings(clip_low=0.2, clip_high=0.28, kl_beta=0.07, alpha_entropy=0.03)


def make_step(lengths: list[int], seed: int) -> list[Response]:
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int, scale: float) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64) * scale

    step = []
    for n in lengths:
        old = -0.05 - draw(n, 1.0).abs()
        sampler, ref = old + draw(n, 0.15), old + draw(n, 0.2)
        # A shift of the whole response besides: sequence ratios are to reach the clip bounds too.
        logprobs = (old + draw(n, 0.3) + draw(1, 0.3)).clamp(max=-1e-3).requires_grad_()
        step.append(Response(logprobs, draw(n, 1.0).abs().requires_grad_(), old, sampler.clamp(max=-0.01), ref, 0.0))
    for response, advantage in zip(step, torch.randn(len(step), generator=generator).tolist(), strict=True):
        response.advantage = advantage
    step[0].advantage = 0.0
    return step


def flat(parts: list[Response], objective: Objective, correction: Correction | None, weights: list[float]) -> PolicyTokens:
    """One micro-batch: each response behind a prompt of garbage. The field's tensors are not leaves."""
    prompt = torch.full((2,), float("nan"), dtype=torch.float64)

    def lay(values: list[Tensor]) -> Tensor:
        return torch.cat([part for value in values for part in (prompt, value)])

    def each(values: list[float]) -> Tensor:
        return lay([torch.full((len(r),), v, dtype=torch.float64) for r, v in zip(parts, values, strict=True)])

    mask = lay([torch.ones(len(r), dtype=torch.float64) for r in parts]).eq(1)
    logprobs, old = lay([r.logprobs for r in parts]), lay([r.old for r in parts])
    sampler = lay([r.sampler for r in parts])
    cu_seqlens = torch.tensor([0, *itertools.accumulate(len(r) + 2 for r in parts)])
    return PolicyTokens(
        logprobs=logprobs,
        entropy=lay([r.entropy for r in parts]),
        old_logprobs=old,
        advantages=each([r.advantage for r in parts]),
        mask=mask,
        weights=each(weights),
        sampler_logprobs=sampler,
        ref_logprobs=lay([r.ref for r in parts]),
        sequence_log_ratio=sequence_log_ratios((logprobs - old).detach(), mask, cu_seqlens)
        if objective.sequence_level
        else None,
        corrections=None if correction is None else correction.weights(old, sampler),
    )


def chunks(tokens: PolicyTokens, size: int) -> list[PolicyTokens]:
    given = {name: value for name, value in vars(tokens).items() if value is not None}
    return [
        PolicyTokens(**{name: value[start : start + size] for name, value in given.items()})
        for start in range(0, tokens.mask.numel(), size)
    ]


def run(
    objective: Objective, step: list[Response], loss_settings: LossSettings, correction: Correction | None,
    places: list[int], size: int,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The whole step's loss; response i goes to micro-batch places[i] (on whichever rank), each cut into chunks."""
    weights = objective.token_weights([len(r) for r in step])
    results = []
    for place in sorted(set(places)):
        here = [i for i in range(len(step)) if places[i] == place]
        tokens = flat([step[i] for i in here], objective, correction, [weights[i] for i in here])
        results += [policy_loss(objective, chunk, loss_settings) for chunk in chunks(tokens, size)]
    total = torch.stack([loss for loss, _ in results]).sum() / sum(len(r) for r in step)
    return total, combine_metrics(metrics for _, metrics in results)


def gradients(loss: Tensor, step: list[Response]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [leaf for r in step for leaf in (r.logprobs, r.entropy)]))


ragged = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@settings(max_examples=120, deadline=None)
@given(
    name=st.sampled_from(sorted(LOSSES)),
    lengths=ragged,
    seed=st.integers(0, 999),
    kl=st.sampled_from(["k1", "k2", "k3"]),
    correction=st.sampled_from(["none", *CORRECTIONS]),
    deal=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    size=st.integers(1, 40),
)
def test_value_and_gradient_are_the_formula_s(
    name: str, lengths: list[int], seed: int, kl: Any, correction: str, deal: list[int], size: int
) -> None:
    step = make_step(lengths, seed)
    constants = Constants(kl=kl, correction=correction)
    expected = LOSSES[name](step, constants)
    chosen = LossSettings(clip_low=0.2, clip_high=0.28, kl_beta=0.07, alpha_entropy=0.03, kl_estimator=kl)
    loss, metrics = run(make_objective(name, 11), step, chosen, CORRECTIONS.get(correction), deal[: len(step)], size)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradients(loss, step), gradients(expected, step), rtol=0, atol=1e-12)
    assert metrics["tokens"].item() == sum(lengths)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_of_zero_advantages_leaves_kl_and_entropy(name: str) -> None:
    step = make_step([3, 1, 5], 4)
    for response in step:
        response.advantage = 0.0
    loss, metrics = run(make_objective(name, 11), step, SETTINGS, None, [0, 1, 0], 3)
    expected = LOSSES[name](step, Constants())
    torch.testing.assert_close(gradients(loss, step), gradients(expected, step), rtol=0, atol=1e-12)
    assert metrics["policy_loss_sum"] == 0 and metrics["clipped_tokens"] == 0


def test_gspo_clips_whole_responses() -> None:
    step = make_step([4, 3], 1)
    for response, ratio in zip(step, (1.5, 1.1), strict=True):
        response.advantage = 1.0
        with torch.no_grad():  # single tokens far outside, the mean where we want it
            response.logprobs.copy_(response.old + math.log(ratio) + torch.tensor([3.0, -3.0, 0.0, 0.0])[: len(response)])
    loss, metrics = run(GSPO(), step, SETTINGS, None, [0, 0], 2)
    by_logprob = gradients(loss, step)[::2]
    assert metrics["clipped_tokens"] == 4
    kl_alone = LossSettings(clip_low=0.2, clip_high=0.28, kl_beta=0.07, alpha_entropy=0.0)
    step[0].advantage = 0.0
    torch.testing.assert_close(by_logprob[0], gradients(run(GSPO(), step, kl_alone, None, [0, 0], 2)[0], step)[0])


def test_sums_over_sequences_use_their_own_tokens_alone() -> None:
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0, 5.0])
    mask, borders = torch.tensor([True, True, False, False, True]), torch.tensor([0, 2, 4, 5])
    assert sequence_sums(values, mask, borders).tolist() == [3.0, 0.0, 5.0]
    assert sequence_log_ratios(values, mask, borders).tolist() == [1.5, 1.5, 0.0, 0.0, 5.0]


def test_the_gradients_of_the_kl_estimators_are_those_that_they_are_said_to_be() -> None:
    """Expectations over a whole vocabulary, on policy."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.0, 0.5, -0.3, 0.2], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    there = (logprobs.exp() * (logprobs - reference)).sum()
    back = (reference.exp() * (reference - logprobs)).sum()
    probabilities = logprobs.exp().detach()
    for estimator, unbiased, gradient in (("k1", True, None), ("k2", False, there), ("k3", True, back)):
        mean = (probabilities * kl_estimate(logprobs, reference, estimator)).sum()  # type: ignore[arg-type]
        assert (mean - there).abs().item() < 1e-12 or not unbiased
        (found,) = torch.autograd.grad(mean, logits, retain_graph=True)
        wanted = torch.zeros(4).double() if gradient is None else torch.autograd.grad(gradient, logits, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12, msg=estimator)


def tokens_of(step: list[Response], **changes: Any) -> PolicyTokens:
    return PolicyTokens(**(vars(flat(step, GSPO(), None, [1.0] * len(step))) | changes))


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_masked_positions_may_hold_anything(name: str, garbage: float) -> None:
    objective, whole = make_objective(name, 11), tokens_of(make_step([6], 2))
    mask = whole.mask & torch.tensor([False, False, True, False, True, True, False, True])
    values = {key: value.detach() for key, value in vars(whole).items() if value is not None and key != "mask"}
    clean = {key: value[mask].requires_grad_(key in ("logprobs", "entropy")) for key, value in values.items()}
    dirty = {key: value.masked_fill(~mask, garbage) for key, value in values.items()}
    dirty = {key: value.requires_grad_(key in ("logprobs", "entropy")) for key, value in dirty.items()}
    expected, expected_metrics = policy_loss(objective, PolicyTokens(mask=mask[mask], **clean), SETTINGS)
    loss, metrics = policy_loss(objective, PolicyTokens(mask=mask, **dirty), SETTINGS)
    expected.backward()
    loss.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, expected_metrics)
    for key in ("logprobs", "entropy"):
        found = dirty[key].grad
        assert found is not None and found[~mask].eq(0).all()
        torch.testing.assert_close(found[mask], clean[key].grad)


@pytest.mark.parametrize("drift", [200.0, -200.0, -float("inf")])
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_enormous_ratios_keep_loss_and_gradient_finite(drift: float, advantage: float, kl: Any) -> None:
    logprobs = torch.full((3,), -1.0 + drift).requires_grad_()
    usual = torch.full((3,), -1.0)
    tokens = PolicyTokens(
        logprobs=logprobs, entropy=torch.ones(3), old_logprobs=usual, advantages=torch.full((3,), advantage),
        mask=torch.ones(3, dtype=torch.bool), ref_logprobs=usual,
    )  # fmt: skip
    chosen = LossSettings(clip_low=0.2, clip_high=0.2, kl_beta=0.07, alpha_entropy=0.03, kl_estimator=kl)
    loss, _ = policy_loss(make_objective("c3po", 1), tokens, chosen)
    loss.backward()
    assert logprobs.grad is not None
    assert loss.isfinite() and logprobs.grad.isfinite().all()


def test_metrics_are_sums_with_their_names() -> None:
    step = make_step([5, 4], 5)
    correction = CORRECTIONS["icepop"]
    tokens = flat(step, make_objective("c3po", 1), correction, [2.0, 0.5])
    _, metrics = policy_loss(make_objective("c3po", 1), tokens, SETTINGS)
    mask = tokens.mask
    change = (tokens.logprobs - tokens.old_logprobs)[mask].detach()
    assert tokens.weights is not None and tokens.corrections is not None
    assert tokens.ref_logprobs is not None and tokens.sampler_logprobs is not None
    weights, corrections, advantages = tokens.weights[mask], tokens.corrections[mask], tokens.advantages[mask]
    clipped = ((change.exp() > 1.28) & (advantages > 0)) | ((change.exp() < 0.8) & (advantages < 0))
    mismatch = (tokens.logprobs - tokens.sampler_logprobs)[mask].detach().abs()
    expected = {
        "tokens": 9.0,
        "policy_loss_sum": -(weights * corrections * clipped_surrogate(change, advantages, 0.2, 0.28)).sum().item(),
        "entropy_sum": tokens.entropy[mask].sum().item(),
        "kl_sum": kl_estimate(tokens.logprobs, tokens.ref_logprobs)[mask].sum().item(),
        "clipped_tokens": float(clipped.sum()),
        "corrected_away_tokens": float((corrections == 0).sum()),
        "mismatch_logprob_abs_sum": mismatch.sum().item(),
        "mismatch_logprob_abs_max": mismatch.max().item(),
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)
    assert expected["corrected_away_tokens"] > 0


def test_nothing_selected_is_a_zero_with_a_gradient() -> None:
    tokens = tokens_of(make_step([3], 0))
    nothing = PolicyTokens(**(vars(tokens) | {"mask": torch.zeros_like(tokens.mask)}))
    for none in (nothing, chunks(nothing, 2)[0]):
        leaf = none.logprobs.detach().requires_grad_()
        loss, metrics = policy_loss(GSPO(), PolicyTokens(**(vars(none) | {"logprobs": leaf})), SETTINGS)
        loss.backward()
        assert loss == 0 and leaf.grad is not None and leaf.grad.eq(0).all()
        assert metrics["mismatch_logprob_abs_max"] == 0
    empty = {key: value[:0] for key, value in vars(tokens).items() if value is not None}
    assert policy_loss(GSPO(), PolicyTokens(**empty), SETTINGS)[0] == 0


def test_bfloat16_inputs_are_summed_in_fp32() -> None:
    halves = {
        key: value if key == "mask" else value.bfloat16()
        for key, value in vars(tokens_of(make_step([3], 0))).items()
        if value is not None
    }
    loss, metrics = policy_loss(GSPO(), PolicyTokens(**halves), SETTINGS)
    assert loss.dtype == torch.float32 and metrics["tokens"].dtype == torch.float64


def test_bad_arguments_are_refused() -> None:
    step = make_step([3], 0)
    with pytest.raises(ValueError, match="entropy"):
        tokens_of(step, entropy=torch.zeros(2))
    with pytest.raises(ValueError, match="must be torch"):
        tokens_of(step, mask=torch.ones(5))
    with pytest.raises(ValueError, match="kl_beta"):
        policy_loss(GSPO(), tokens_of(step, ref_logprobs=None), SETTINGS)
    with pytest.raises(ValueError, match="sequence_log_ratio"):
        policy_loss(GSPO(), tokens_of(step, sequence_log_ratio=None), SETTINGS)
    for low, high in ((0.0, 0.2), (0.2, 0.0)):
        with pytest.raises(ValueError, match="clip"):
            LossSettings(clip_low=low, clip_high=high, kl_beta=0.0, alpha_entropy=0.0)
    for name in LOSSES:
        with pytest.raises(ValueError, match="at least 1"):
            make_objective(name, 11).token_weights([3, 0])
    with pytest.raises(ValueError, match="length budget"):
        make_objective("dr-grpo", 0)
