"""On two GPUs: bf16 training under every layout follows the loss of one GPU, nearer than another seed does."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE
from tests.layouts import LAYOUTS
from tests.training.test_trainer import step_batches

if torch.cuda.device_count() < 2:
    pytest.skip("fewer than two CUDA devices", allow_module_level=True)

SHAPE = replace(RING_LITE, num_layers=2, vocab_size=16_384)  # of the published width
STEPS = 50


def train(parallel: ParallelConfig, seed: int) -> list[float]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    optimizer = OptimizerConfig(lr=3e-4, warmup_fraction=0.1)
    here = context.initialize(parallel, SHAPE, seed=0)
    model = build_model(SHAPE, here, RouterLossConfig(1e-2, 1e-3), torch.bfloat16)
    initialize_weights(model, seed=seed)
    trainer = Trainer(model, here, optimizer)
    curve = []
    for step in range(STEPS):
        batches = step_batches(step)[here.data_rank :: here.data_size]
        curve.append(trainer.train_step(batches, SFTLoss(), optimizer.lr_at(step, STEPS)).mean("loss"))
    del trainer, model
    torch.cuda.empty_cache()
    return curve


@pytest.fixture(scope="module")
def seen() -> dict[Any, list[float]]:
    return {}


@pytest.mark.parametrize("layout", ["dp2", "ep2", "tp2", "pp2", "tp2_ep2"])
def test_bf16_follows_one_gpu(run_on, seen: dict[Any, list[float]], layout: str) -> None:
    for seed in (2, 3):
        if seed not in seen:
            seen[seed] = run_on(1, train, ParallelConfig(), seed)[0]
    processes, parallel = LAYOUTS[layout]
    curve = run_on(processes, train, parallel, 2)[0]

    def apart(a: list[float], b: list[float]) -> list[float]:
        return [abs(x - y) for x, y in zip(a, b, strict=True)]  # nats: the loss goes to 0

    here, spread = apart(curve, seen[2]), apart(seen[3], seen[2])
    print(f"{layout}: {max(here):.1e} at most, {sum(here) / STEPS:.1e} in the mean; another seed {max(spread):.1e}, "
          f"{sum(spread) / STEPS:.1e}; loss {curve[0]:.3f} to {curve[-1]:.3f}", file=sys.stderr)  # fmt: skip
    assert max(here) < max(spread) and sum(here) < sum(spread)
    assert curve[-1] < 0.8 * curve[0]
