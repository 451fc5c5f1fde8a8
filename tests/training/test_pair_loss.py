"""The reward model's step: against a plain float64 model with autograd, and one process against every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.data.preference_data import PreferenceBatch, TokenPair, preference_batch
from tests.checkpoint.published import random_tensors, write_folder
from tests.layouts import LAYOUTS
from tests.reference_model import reference_logits

SMALL = ModelConfig(
    num_layers=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=51, num_experts=4,
    experts_per_token=2, expert_width=12, num_shared_experts=1, dense_width=20, rope_theta=10_000.0, max_positions=64,
    qkv_bias=True, first_dense_layers=1, head="score",
)  # fmt: skip
CENTRING, CAPACITY, STEPS = 0.05, 128, 5
OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_fraction=0.1, clip_grad=0.5)
ROUTER = RouterLossConfig(balance=1e-2, z=1e-3)
TINY = replace(RING_TINY, head="score")
SHAPES = {"tiny": TINY, "odd": replace(TINY, num_layers=3, vocab_size=511, first_dense_layers=1, qkv_bias=True)}


def some_pairs(seed: int, count: int, classes: int, longest: int = 24) -> list[TokenPair]:
    """Random conversations of uneven lengths; some pairs with a margin, the chosen of each ends in a token of its own."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for number in range(count):
        lengths = torch.randint(1, longest, (2,), generator=generator).tolist()
        chosen, rejected = (torch.randint(0, classes, (n,), generator=generator).tolist() for n in lengths)
        margin = 0.5 * (number % 3)
        pairs.append(TokenPair([*chosen, 7], [*rejected, 8], len(chosen), len(rejected), margin))
    return pairs


def dealt(pairs: list[TokenPair], capacity: int) -> list[PreferenceBatch]:
    """As few micro-batches as they fit into in order, and one of padding."""
    groups: list[list[TokenPair]] = [[]]
    for pair in pairs:
        if sum(held.length for held in groups[-1]) + pair.length > capacity:
            groups.append([])
        groups[-1].append(pair)
    return [preference_batch(group, capacity, 0) for group in [*groups, []]]


def gradients_of_the_step(folder: str, pairs: list[TokenPair]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Figures of one step, and gradients of its loss by published name."""
    from megatron_ring.checkpoint.tensor_rules import rules_for
    from megatron_ring.config.stage import TrainedModelOptions
    from megatron_ring.run.stage import open_model, resolve_shape
    from megatron_ring.training.pair_loss import PairLoss
    from megatron_ring.training.trainer import Trainer

    options = TrainedModelOptions(precision="fp32", router=RouterLossConfig(0.0, 0.0))
    stage = open_model(options, resolve_shape(None, Path(folder)), Path(folder))
    trainer = Trainer(stage.model, stage.context, replace(OPTIMIZER, clip_grad=float("inf")))
    result = trainer.train_step(dealt(pairs, 64), PairLoss(CENTRING), 1e-30)
    # On a CPU the optimizer has divided them by the pairs, in place.
    left = result.loss_tokens if stage.context.device.type == "cuda" else 1
    by_name = {name: (weight.main_grad / left).cpu() for name, weight in stage.model.named_parameters()}
    found = {}
    for rule in rules_for(stage.shape):
        whole = by_name[rule.target][: rule.target_shape[0]]
        at = tuple(slice(o, o + s) for o, s in zip(rule.box.offset, rule.box.size, strict=True))
        found[rule.source] = rule.to_published(whole[at].contiguous()).clone()
    figures = {name: result.mean(name) for name in result.sums}
    return {**figures, "pairs": result.loss_tokens, "grad_norm": result.grad_norm}, found


def by_hand(folder: Path, pairs: list[TokenPair]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The same in float64, one conversation at a time."""
    config = json.loads((folder / "config.json").read_text())
    tensors = {name: tensor.double().requires_grad_() for name, tensor in load_file(folder / "model.safetensors").items()}

    def reward(tokens: Any) -> torch.Tensor:
        return reference_logits(torch.tensor(tokens), {**tensors, "lm_head.weight": tensors["score.weight"]}, config)[-1, 0]

    preference = centre = torch.zeros((), dtype=torch.float64)
    right, rewards = 0, []
    for pair in pairs:
        chosen, rejected = reward(pair.chosen), reward(pair.rejected)
        preference = preference - torch.log(1 / (1 + torch.exp(-(chosen - rejected - pair.margin))))
        centre = centre + (chosen + rejected) ** 2
        right += int(chosen > rejected)
        rewards.append((chosen.item(), rejected.item()))
    loss = (preference + CENTRING * centre) / len(pairs)
    loss.backward()
    gradients = {name: tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    norm = sum(float(gradient.square().sum()) for gradient in gradients.values()) ** 0.5
    chosen_mean = sum(one for one, _ in rewards) / len(pairs)
    return {
        "loss": loss.item(), "loss/preference": preference.item() / len(pairs), "loss/centre": centre.item() / len(pairs),
        "accuracy": right / len(pairs), "pairs": len(pairs), "grad_norm": norm, "reward/chosen": chosen_mean,
    }, gradients  # fmt: skip


@pytest.mark.distributed
def test_loss_and_gradients_equal_a_plain_float64_model(run_on, tmp_path: Path) -> None:
    tensors = {name: 0.4 * tensor for name, tensor in random_tensors(SMALL, seed=5).items()}
    folder = write_folder(tmp_path / "hf", SMALL, tensors)
    pairs = some_pairs(3, 4, SMALL.vocab_size, 16)
    (found, gradients), (wanted, expected) = run_on(1, gradients_of_the_step, str(folder), pairs)[0], by_hand(folder, pairs)
    assert found == pytest.approx(found | wanted, rel=2e-5)
    assert gradients.keys() == expected.keys()
    assert expected.keys() >= {"score.weight", "model.word_embeddings.weight", "model.layers.1.mlp.gate.weight"}
    for name, gradient in expected.items():
        difference = (gradients[name].double() - gradient).norm()
        assert difference < 2e-5 * max(gradient.norm(), 1e-3), (name, difference, gradient.norm())


def train(parallel: ParallelConfig, name: str) -> tuple[list[dict[str, float]], list[float], str]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.reward_models.scoring import score_sequences
    from megatron_ring.training.pair_loss import PairLoss
    from megatron_ring.training.trainer import Trainer

    shape = SHAPES[name]
    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here, ROUTER)
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OPTIMIZER)
    curve = []
    for step in range(STEPS):
        batches = dealt(some_pairs(step, 8, 300), CAPACITY)[:4]
        batches += [preference_batch([], CAPACITY, 0)] * (4 - len(batches))
        mine = batches[here.data_rank :: here.data_size]
        result = trainer.train_step(mine, PairLoss(CENTRING), OPTIMIZER.lr_at(step, STEPS))
        curve.append({key: result.mean(key) for key in result.sums})
        curve[-1] |= {"grad_norm": result.grad_norm, "balance": result.balance, "pairs": result.loss_tokens}
    held = [tokens for pair in some_pairs(99, 5, 300) for tokens in (pair.chosen, pair.rejected)]
    rewards = score_sequences(model, here, held, 64, 0)
    assert score_sequences(model, here, held[:1], 64, 0) == pytest.approx(rewards[:1], abs=1e-4)  # fewer than ranks
    dtype = str(model.score.weight.dtype) if here.last_stage else "torch.float32"
    return curve, rewards, dtype


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process gives, by shape, once it has been computed."""
    return {}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "layout"),
    [("tiny", "dp2"), ("tiny", "ep2"), ("odd", "tp2"), ("odd", "pp2"), ("tiny", "tp2_ep2")],
)
def test_every_layout_trains_the_same_curve(run_on, alone: dict[str, Any], name: str, layout: str) -> None:
    if name not in alone:
        alone[name] = run_on(1, train, ParallelConfig(), name)[0]
    wanted, wanted_rewards, _ = alone[name]
    processes, parallel = LAYOUTS[layout]
    for curve, rewards, _ in run_on(processes, train, parallel, name):
        for step, (found, expected) in enumerate(zip(curve, wanted, strict=True)):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4), (step, found, expected)
            assert found == pytest.approx(expected, rel=1e-2, abs=1e-3), step
        assert rewards == pytest.approx(wanted_rewards, abs=2e-3)
    assert wanted[-1]["loss/preference"] < wanted[0]["loss/preference"]


def packed_and_alone() -> tuple[list[float], list[float], list[float]]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.reward_models.scoring import score_sequences

    here = context.initialize(ParallelConfig(), TINY, seed=0)
    model = build_model(TINY, here)
    initialize_weights(model, seed=4)
    model.score.weight.data.mul_(30.0)
    sequences = [tokens for pair in some_pairs(1, 6, 300) for tokens in (pair.chosen, pair.rejected)]
    others = [[*tokens[:-1], 11] for tokens in sequences[:-1]]
    changed = score_sequences(model, here, [*others, sequences[-1]], 4096, 0)
    return score_sequences(model, here, sequences, 4096, 0), score_sequences(model, here, sequences, 1, 0), changed


@pytest.mark.distributed
def test_a_conversation_sees_nothing_of_its_neighbours(run_on) -> None:
    packed, single, changed = run_on(1, packed_and_alone)[0]
    assert packed == pytest.approx(single, abs=1e-5) and max(packed) - min(packed) > 0.1
    assert changed[-1] == packed[-1] and changed[:-1] != packed[:-1]


def half_precision() -> tuple[str, str, bool, bool]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.pair_loss import PairLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(ParallelConfig(), TINY, seed=0)
    model = build_model(TINY, here, dtype=torch.bfloat16)
    initialize_weights(model, seed=2)
    before = model.score.weight.detach().clone()
    trainer = Trainer(model, here, OPTIMIZER)
    losses = [trainer.train_step(dealt(some_pairs(1, 6, 300), CAPACITY), PairLoss(), 2e-3).mean("loss") for _ in range(6)]
    score = model.score.weight.detach()
    kept = bool((score != score.bfloat16().float()).any()) and bool((score != before).all())
    return str(score.dtype), str(model.embedding.word_embeddings.weight.dtype), kept, losses[-1] < losses[0]


@pytest.mark.distributed
def test_the_score_is_fp32_in_a_bf16_model(run_on) -> None:
    assert run_on(1, half_precision)[0] == ("torch.float32", "torch.bfloat16", True, True)
