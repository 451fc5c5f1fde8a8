"""Balancing without a loss: who is chosen, who is weighed, how the bias moves, where it travels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.errors import UserError
from megatron_ring.model.kernels.router import choose_experts, choose_with_bias
from megatron_ring.model.router import balance_bias
from tests.layouts import LAYOUTS
from tests.training.test_trainer import OPTIMIZER, step_batches

RATE, STEPS = 0.01, 4
SHAPE = replace(RING_TINY, expert_bias=True, first_dense_layers=1, num_layers=3)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("losses", [False, True])
def test_the_bias_chooses_and_does_not_weigh(k: int, losses: bool) -> None:
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    bias = torch.tensor([0.4, 0, 0, -0.4, 0.1, 0, 0, 0])
    padding = torch.arange(50) > 40
    weights, experts, sums = choose_with_bias(logits, bias, k, padding, losses)
    p = logits.double().softmax(-1)
    wanted = (p + bias).topk(k).indices
    assert torch.equal(experts.sort(-1).values, wanted.sort(-1).values)
    chosen = p.gather(1, experts)
    chosen = chosen / chosen.sum(-1, keepdim=True) if k > 1 else chosen
    assert torch.allclose(weights.double(), chosen, atol=1e-6)
    if losses:
        assert torch.equal(sums[:8], torch.bincount(experts[:41].flatten(), minlength=8).float())
    nothing = choose_with_bias(logits, torch.zeros(8), k, padding, losses)
    plain = choose_experts(logits, k, padding, losses)
    assert torch.equal(nothing[1], plain[1]) and torch.allclose(nothing[0], plain[0], atol=1e-6)
    assert torch.allclose(nothing[2], plain[2], rtol=1e-5)


def test_a_bias_moves_towards_the_mean() -> None:
    bias = torch.tensor([0.0, 0.5, -0.25, 0.0])
    balance_bias(bias, torch.tensor([10.0, 0.0, 6.0, 8.0]).double(), 0.125)
    assert bias.tolist() == [-0.125, 0.625, -0.25, -0.125]  # the mean is 6


def trained(parallel: ParallelConfig, folder: Path | None = None) -> dict[int, tuple[list[float], list[float]]]:
    """Biases after STEPS steps and the last step's loads, by layer (from 0) of this rank; what followed from the loads is
    computed here again."""
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, SHAPE, seed=0)
    model = build_model(SHAPE, here, RouterLossConfig(1e-3, 0.0, bias_rate=RATE))
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OPTIMIZER)
    expected = torch.zeros(2, SHAPE.num_experts)
    for step in range(STEPS):
        batches = step_batches(step)[here.data_rank :: here.data_size]
        result = trainer.train_step(batches, SFTLoss(), OPTIMIZER.lr_at(step, STEPS))
        loads = torch.tensor(result.loads)
        assert loads.shape == expected.shape
        assert torch.equal(loads.sum(-1), torch.full((2,), float(result.routed_tokens * SHAPE.experts_per_token)))
        expected += RATE * torch.sign(loads.mean(-1, keepdim=True) - loads)
    found = {}
    for layer in model.decoder.layers:
        number = layer.layer_number - 1
        if number:
            bias = layer.mlp.router.expert_bias
            assert torch.allclose(bias, expected[number - 1])
            found[number] = (bias.tolist(), result.loads[number - 1])
    trainer.evaluate(batches, SFTLoss())
    assert all(torch.allclose(layer.mlp.router.expert_bias, expected[layer.layer_number - 2])
               for layer in model.decoder.layers if layer.layer_number > 1)  # fmt: skip
    if folder is not None:
        save_checkpoint(folder, STEPS, model, trainer.optimizer, here, {})
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "pp2"])
def test_every_layout_moves_the_same_biases(run_on, layout: str) -> None:
    (alone,) = run_on(1, trained, ParallelConfig())
    processes, parallel = LAYOUTS[layout]
    parts = run_on(processes, trained, parallel)
    assert {layer for part in parts for layer in part} == {1, 2}
    for part in parts:
        for layer, (bias, loads) in part.items():
            assert sum(abs(a - b) > 1e-6 for a, b in zip(bias, alone[layer][0], strict=True)) <= 1  # a tie may turn
            assert loads == pytest.approx(alone[layer][1], abs=4)


def loaded(folder: str) -> None:
    """A checkpoint with biases: read back, sampled from, given to a model without, published and read from there."""
    from megatron_ring.checkpoint.convert import export_checkpoint
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.config.sampling import SamplingConfig
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.run.stage import open_model
    from megatron_ring.sampler.trainer_mismatch import measure_mismatch
    from tests.sampler.test_sampler import groups

    here = context.initialize(ParallelConfig(), SHAPE, seed=0)
    model = build_model(SHAPE, here, RouterLossConfig(0.0, 0.0))
    load_checkpoint(Path(folder) / f"step_{STEPS}", model, here)
    routers = [layer.mlp.router for layer in model.decoder.layers if hasattr(layer.mlp, "router")]
    assert all(router.expert_bias.abs().max() > 0 for router in routers)
    for router in routers:
        router.expert_bias.mul_(20)  # so that it decides
    requests = groups([2, 1], new=20)
    sampling = SamplingConfig(max_batch=4, prefill_tokens=8, page_size=4, kv_tokens=400)
    found = measure_mismatch(model, here, sampling, requests, train_tokens=150)
    assert found.differences.abs().max() < 1e-5 and found.routed > 0 and found.routed_differently == 0
    plain = build_model(replace(SHAPE, expert_bias=False), here)
    with pytest.raises(UserError, match="expert_bias True"):
        load_checkpoint(Path(folder) / f"step_{STEPS}", plain, here)
    load_checkpoint(Path(folder) / f"step_{STEPS}", model, here)
    export_checkpoint(Path(folder) / f"step_{STEPS}", Path(folder) / "hf")
    context.shutdown()
    published = open_model(ModelOptions(precision="fp32"), SHAPE, Path(folder) / "hf").model
    ours, theirs = ({name: tensor for name, tensor in one.state_dict().items() if tensor is not None}
                    for one in (model, published))  # fmt: skip
    assert sum(name.endswith("expert_bias") for name in ours) == 2 and ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if isinstance(tensor, torch.Tensor))


@pytest.mark.slow
def test_a_checkpoint_keeps_them_and_the_sampler_uses_them(run_on, tmp_path: Path) -> None:
    run_on(1, trained, ParallelConfig(), tmp_path)
    run_on(1, loaded, str(tmp_path))


def given_biases(folder: str) -> Any:
    """A stage with --router.bias-rate that begins with weights without biases."""
    from megatron_ring.checkpoint.convert import export_checkpoint
    from megatron_ring.checkpoint.saving import save_checkpoint
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.config.stage import TrainedModelOptions
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.run.stage import open_model

    here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
    model = build_model(RING_TINY, here)
    initialize_weights(model, seed=2)
    save_checkpoint(Path(folder), 1, model, None, here, {})
    context.shutdown()
    export_checkpoint(Path(folder) / "step_1", Path(folder) / "hf")
    options, found = TrainedModelOptions(router=RouterLossConfig(bias_rate=RATE)), []
    for start in ("step_1", "hf"):
        stage = open_model(options, options.extended(RING_TINY), Path(folder) / start)
        for ours, theirs in zip(stage.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        found += [layer.mlp.router.expert_bias.tolist() for layer in stage.model.decoder.layers]
        context.shutdown()
    return found


def test_a_model_without_biases_gets_them(run_on, tmp_path: Path) -> None:
    (biases,) = run_on(1, given_biases, str(tmp_path))
    assert biases == [[0.0] * RING_TINY.num_experts] * RING_TINY.num_layers * 2
