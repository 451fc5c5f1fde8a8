"""On a GPU with NVIDIA Apex: its weight gradients and its Adam against ours, same weights and tokens."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE, RING_TINY

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
if not all(importlib.util.find_spec(name) for name in ("amp_C", "fused_weight_gradient_mlp_cuda")):
    pytest.skip("no NVIDIA Apex", allow_module_level=True)

SMALL = replace(RING_TINY, num_layers=3, hidden_size=256, head_dim=64, first_dense_layers=1, qkv_bias=True)
SLICE = replace(RING_LITE, num_layers=2, num_experts=8, vocab_size=16_384)  # of the published width


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    from megatron_ring.parallel import context

    yield
    context.shutdown()
    torch.cuda.empty_cache()


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def build(shape: ModelConfig, apex: str, dtype: torch.dtype = torch.bfloat16, recompute: str = "none"):
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import Trainer

    context.shutdown()
    here = context.initialize(ParallelConfig(), shape, seed=0)
    model = build_model(shape, here, dtype=dtype, recompute=recompute)
    initialize_weights(model, seed=3)
    return Trainer(model, here, OptimizerConfig(lr=3e-3, apex=apex))


def batches(shape: ModelConfig):
    """Two micro-batches, the second with padding: buffers are added to as well as begun."""
    from megatron_ring.data.packing import pack_sequences
    from megatron_ring.data.sequences import TokenSequence

    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(shape.vocab_size, (n,), generator=generator).tolist() for n in (180, 30, 250, 200, 190)]
    sequences = [TokenSequence(text, [True] * len(text)) for text in texts]
    return [pack_sequences(sequences[:3], 512, 0), pack_sequences(sequences[3:], 512, 0)]


def gradients(shape: ModelConfig, apex: str, dtype: torch.dtype, recompute: str) -> dict[str, torch.Tensor]:
    """fp32 buffers after the backward passes of a second step, so that what the first left must be gone."""
    from megatron_ring.training.losses import SFTLoss

    trainer = build(shape, apex, dtype, recompute)
    for _ in range(2):
        trainer.buffers.start_step()
        trainer._run(batches(shape), SFTLoss(), forward_only=False)
    return {name: parameter.main_grad.clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize(("shape", "dtype", "recompute"), [
    (SMALL, torch.bfloat16, "none"), (SMALL, torch.bfloat16, "full"), (SMALL, torch.float32, "none"),
    (SLICE, torch.bfloat16, "none"),
], ids=["small", "recompute", "fp32", "slice"])  # fmt: skip
def test_gradients(shape: ModelConfig, dtype: torch.dtype, recompute: str) -> None:
    """Ours are products rounded to bf16 and then added in fp32; Apex's are not rounded: 2^-9 of each element at most."""
    wanted, found = (gradients(shape, apex, dtype, recompute) for apex in ("off", "gradients"))
    errors = {name: relative(found[name], wanted[name]) for name in wanted}
    largest = sorted(errors.items(), key=lambda item: -item[1])[:3]
    print(f"largest differences of gradients: {largest}", file=sys.stderr)
    assert all(error < (4e-3 if dtype is torch.bfloat16 else 1e-5) for error in errors.values()), largest
    if dtype is torch.bfloat16:
        assert errors["decoder.layers.1.self_attention.linear_qkv.weight"] > 0  # another product made it


@pytest.mark.parametrize("size", [1, 65_536, 10_001, 23_000_001])
def test_adam_against_ours(size: int) -> None:
    """Five updates of tensors of uneven sizes, an empty one among and behind them; fp32 rounding apart."""
    from megatron_ring.training.adamw import FusedAdamW
    from megatron_ring.training.apex import ApexAdamW

    generator = torch.Generator("cuda").manual_seed(0)
    first = [torch.randn(n, generator=generator, device="cuda") for n in (size, 0, 5, 70_000, 0)]
    drawn = [[torch.randn(p.shape, generator=generator, device="cuda") for p in first] for _ in range(5)]
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    results = []
    for make in (FusedAdamW, ApexAdamW):
        parameters = [p.clone() for p in first]
        optimizer = make([{"params": parameters, **settings}], torch.float32)
        optimizer.copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in parameters[:4]}
        for number, step in enumerate(drawn):
            optimizer.gradient_scale = 0.5 / (number + 1)
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        results.append((parameters, optimizer))
    (ours, our_optimizer), (theirs, their_optimizer) = results
    for a, b, start in zip(ours, theirs, first, strict=True):
        if a.numel():
            assert relative(b - start, a - start) < 1e-4
            for name in ("exp_avg", "exp_avg_sq"):
                assert relative(their_optimizer.state[b][name], our_optimizer.state[a][name]) < 1e-4, name
    assert all(torch.equal(copy, parameter.bfloat16()) for parameter, copy in their_optimizer.copies.items())


@pytest.mark.parametrize("apex", ["gradients", "adam", "both"])
def test_a_step_and_more_go_the_same_way(apex: str) -> None:
    """One update of the whole model, weight by weight, and the losses of eight."""
    from megatron_ring.training.losses import SFTLoss

    curves, updates = [], []
    for which in ("off", apex):
        trainer = build(SMALL, which)
        before = {name: parameter.detach().float().clone() for name, parameter in trainer.model.named_parameters()}
        curve = []
        for step in range(8):
            curve.append(trainer.train_step(batches(SMALL), SFTLoss(), 3e-3).mean("loss"))
            if step == 0:
                after = dict(trainer.model.named_parameters())
                updates.append({name: after[name].detach().float() - before[name] for name in before})
        curves.append(curve)
    native, theirs = updates
    # Adam's first update is lr times the gradient's sign: it turns where a gradient is nearly 0, and bf16 rounds the sum.
    errors = {name: relative(theirs[name], native[name]) for name in native}
    print(f"losses, native and {apex}: {curves}; largest: {sorted(errors.values())[-3:]}", file=sys.stderr)
    assert all(error < (0.15 if apex != "adam" else 1e-2) for error in errors.values()), errors
    assert curves[0][-1] < curves[0][0] - 1
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
