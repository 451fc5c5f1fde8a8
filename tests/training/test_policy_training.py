"""Every objective through the trainer: against the formulas by plain autograd, and equal however the step is dealt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.objective import CorrectionConfig, ObjectiveConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.data.packing import empty_policy_batch, pack_sequences
from megatron_ring.data.sequences import PolicySequence, TokenSequence
from tests.algorithm.transcription import LOSSES, Constants, Response
from tests.layouts import LAYOUTS
from tests.rollout.responses import pack_rollouts

SHAPE = replace(RING_TINY, num_layers=2, init_std=0.15)  # large weights: probabilities and KL far from uniform
OPTIMIZER = OptimizerConfig(lr=1e-3, clip_grad=100.0)
NO_ROUTER_LOSSES = RouterLossConfig(0.0, 0.0)
COMMON: dict[str, Any] = {"clip": 0.2, "clip_high": 0.28, "kl_beta": 0.07, "alpha_entropy": 0.03}


def make_config(name: str, correction: str) -> RLConfig:
    old = "sampler" if correction == "none" else "recomputed"
    bounds = {"none": {}, "tis": {"cap": 1.1}, "icepop": {"low": 0.8, "high": 1.2}, "kpop": {"phi": 0.01}}[correction]
    return RLConfig(
        run_dir=Path("nowhere"),
        init_from=Path("nowhere"),
        data=RLDataConfig(prompts=Path("nowhere"), tokenizer=Path("nowhere"), micro_batch_tokens=64),
        objective=ObjectiveConfig(name=name, old_logprobs=old, **COMMON),  # type: ignore[arg-type]
        correction=CorrectionConfig(name=correction, **bounds),  # type: ignore[arg-type]
        sampling=SamplingConfig(max_new_tokens=11),
    ).resolved()


def make_sequences(weights: Any) -> list[PolicySequence]:
    """Nine responses of 1 to 11 tokens, the fourth cut to 3; the sampler's log-probs hover about the model's."""
    generator = torch.Generator().manual_seed(5)
    lengths = [3, 11, 1, 8, 5, 2, 7, 1, 6]
    trained = [3, 11, 1, 3, 5, 2, 7, 1, 6]
    made = []
    for length, kept, weight in zip(lengths, trained, weights(trained), strict=True):
        tokens = torch.randint(300, (length + 2,), generator=generator).tolist()
        noise = (0.3 * torch.randn(length, generator=generator) + 0.2 * torch.randn(1, generator=generator)).tolist()
        advantage = float(torch.randn(1, generator=generator)) if length != 7 else 0.0
        made.append(PolicySequence(tokens[:2], tokens[2:], noise, advantage, weight, kept))
    return made


def prepared(parallel: ParallelConfig, name: str, correction: str, router: RouterLossConfig = NO_ROUTER_LOSSES) -> Any:
    """Trainer and update; the model has other weights than the reference."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.rollout.policy_update import PolicyUpdate
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, SHAPE, seed=0)
    model = build_model(SHAPE, here, router)
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OPTIMIZER)
    policy = PolicyUpdate(make_config(name, correction), trainer, pad_id=0, folder=Path("nowhere"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return here, trainer, policy


def token_logprobs(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities [T, vocabulary] of one sequence."""
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_packed

    layout = PackedLayout(torch.arange(len(tokens)), [len(tokens)])
    logits = forward_packed(model, torch.tensor(tokens), layout)[:, 0] @ model.output_layer.weight.t()
    return logits.log_softmax(-1)


def sampled(model: Any, name: str) -> list[PolicySequence]:
    """The sequences, the sampler's log-probs hovering about those of the model."""
    from megatron_ring.algorithm.objectives import make_objective

    sequences = []
    for sequence in make_sequences(make_objective(name, 11).token_weights):
        tokens = [*sequence.prompt_tokens, *sequence.response_tokens]
        with torch.no_grad():
            now = token_logprobs(model, tokens)[range(1, len(tokens) - 1), tokens[2:]]
        noisy = (now + torch.tensor(sequence.sampler_logprobs)).clamp(max=-1e-3)
        sequences.append(replace(sequence, sampler_logprobs=noisy.tolist()))
    return sequences


def by_hand(name: str, correction: str) -> dict[str, Any]:
    """Loss and gradient norm of the first step, from the formulas, response by response; the sequences."""
    _, trainer, policy = prepared(ParallelConfig(), name, correction)
    policy.reference.annotate([empty_policy_batch(16, 0)])  # megatron-core's loss scale takes its shape from the first use
    sequences = sampled(trainer.model, name)
    responses = []
    for sequence in sequences:
        tokens = [*sequence.prompt_tokens, *sequence.response_tokens[: sequence.trained]]
        rows = slice(1, len(tokens) - 1)
        places = range(len(tokens) - 2), tokens[2:]
        distribution = token_logprobs(trainer.model, tokens)[rows].double()
        with policy.reference.in_place_of_the_model(), torch.no_grad():
            ref = token_logprobs(trainer.model, tokens)[rows].double()[places]
        logprobs = distribution[places]
        sampler = torch.tensor(sequence.sampler_logprobs[: sequence.trained], dtype=torch.float64)
        responses.append(
            Response(
                logprobs=logprobs,
                entropy=-(distribution.exp() * distribution).sum(-1),
                old=sampler if correction == "none" else logprobs.detach(),
                sampler=sampler,
                ref=ref,
                advantage=sequence.advantage,
            )
        )
    loss = LOSSES[name](responses, Constants(correction=correction))
    gradients = torch.autograd.grad(loss, [p for p in trainer.model.parameters() if p.requires_grad], allow_unused=True)
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    return {"loss": loss.item(), "grad_norm": norm.item(), "sequences": sequences}


def through_the_trainer(
    parallel: ParallelConfig, name: str, correction: str, sequences: list[PolicySequence], capacity: int, chunk: int | None
) -> list[dict[str, float]]:
    """Figures of two steps on the same responses; micro-batches of `capacity` tokens, `chunk` tokens a call of the loss."""
    here, trainer, policy = prepared(parallel, name, correction)
    if chunk is not None and here.last_stage:
        trainer.model.output_layer.chunk_logits = chunk * trainer.model.output_layer.weight.shape[0]
    mine = pack_rollouts(sequences, capacity, 0, part=here.data_rank, parts=here.data_size)
    steps = []
    for _ in range(2):
        result = trainer.train_step(policy.annotate(mine), policy.loss, 1e-3)
        ratios = policy.loss.take_ratios(here.device)
        assert sum(ratios.pop("mismatch/log_k").counts) == result.loss_tokens
        figures = {name: result.mean(name) for name in result.sums} | ratios
        steps.append(figures | result.maxima | {"grad_norm": result.grad_norm})
    return steps


FAST = [("gspo", "none"), ("c3po", "icepop")]
SLOW = [("c3po", "none"), ("grpo", "none"), ("dapo", "none"), ("dr-grpo", "none"), ("gspo", "kpop"), ("grpo", "tis")]


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "correction"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_every_objective_is_its_formula_and_the_same_however_it_is_dealt(run_on, name: str, correction: str) -> None:
    wanted = run_on(1, by_hand, name, correction)[0]
    what = name, correction, wanted["sequences"]
    whole = run_on(1, through_the_trainer, ParallelConfig(), *what, 128, None)[0]
    assert whole[0]["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=2e-4)
    total = whole[0]["policy_loss_sum"] - COMMON["alpha_entropy"] * whole[0]["entropy_sum"]
    if name in ("c3po", "dapo"):  # elsewhere the metrics of KL and entropy are token means, which the loss weighs
        assert total + COMMON["kl_beta"] * whole[0]["kl_sum"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert whole[0]["kl_sum"] > 1e-3 and whole[0] != whole[1]
    if correction in ("icepop", "kpop"):
        assert 0 < whole[0]["corrected_away_tokens"] < 1
    elsewhere = [(1, "one", 16, 1), (2, "dp2", 32, 2), *([(2, "pp2", 64, 3)] if (name, correction) in FAST else [])]
    for processes, layout, capacity, chunk in elsewhere:
        for found in run_on(processes, through_the_trainer, LAYOUTS[layout][1], *what, capacity, chunk):
            for step, (here, there) in enumerate(zip(found, whole, strict=True)):
                assert here == pytest.approx(there, rel=1e-3, abs=1e-5), (layout, step)


def held_on_the_host() -> bool:
    """Passes of a reference on the device, again, and on the host give the same and leave the model; a refresh is one."""
    from megatron_ring.training.reference import ReferencePolicy

    _, trainer, policy = prepared(ParallelConfig(), "c3po", "none")
    packs = pack_rollouts(sampled(trainer.model, "c3po"), 64, 0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    first = [batch.ref_logprobs for batch in policy.reference.annotate(packs)]
    again = [batch.ref_logprobs for batch in policy.reference.annotate(packs)]
    with policy.reference.in_place_of_the_model():
        elsewhere = ReferencePolicy(trainer, 1.0, "host")
    third = [batch.ref_logprobs for batch in elsewhere.annotate(packs)]
    for one, two, three in zip(first, again, third, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
        torch.testing.assert_close(one, three, rtol=0, atol=0)
    torch.testing.assert_close(list(trainer.model.parameters()), before, rtol=0, atol=0)
    elsewhere.refresh(3)
    result = trainer.evaluate(elsewhere.annotate(packs), policy.loss)
    return result.mean("kl_sum") == 0 and elsewhere.step == 3


@pytest.mark.distributed
def test_where_the_reference_is_held_changes_nothing(run_on) -> None:
    assert run_on(1, held_on_the_host) == [True]


def test_fields_of_a_pass_travel_with_the_batch() -> None:
    batch = replace(empty_policy_batch(8, 0), corrections=torch.arange(8.0))
    assert batch.at(slice(2, 4)).corrections.tolist() == [2.0, 3.0] and batch.to("cpu").sequence_log_ratio is None
    assert pack_sequences([TokenSequence([1, 2], [0, 1])], 4, 0).loss_mask.tolist() == [True, False, False, False]
