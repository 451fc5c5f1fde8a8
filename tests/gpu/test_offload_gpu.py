"""On a GPU: the optimizer's state leaves its memory for page-locked host memory, and comes back to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_LITE
from tests.training.test_offload import digest, storages
from tests.training.test_trainer import step_batches

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SHAPE = replace(RING_LITE, num_layers=2, num_experts=8, vocab_size=16_384)  # of the published width


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    from megatron_ring.parallel import context

    yield
    context.shutdown()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("moments", ["fp32", "bf16"])
def test_memory_is_free_meanwhile_and_holds_the_same_bits_afterwards(moments: str) -> None:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(ParallelConfig(), SHAPE, seed=0)
    model = build_model(SHAPE, here, RouterLossConfig(1e-2, 1e-3), torch.bfloat16)
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OptimizerConfig(lr=3e-4, moments=moments))
    for step in range(3):
        assert math.isfinite(trainer.train_step(step_batches(step), SFTLoss(), 3e-4).grad_norm)
        before = [tensor.cpu() for tensor in digest(trainer)]
        full = torch.cuda.memory_allocated()
        trainer.offload.send_away()
        gone = full - torch.cuda.memory_allocated()
        have, whole = storages(trainer)
        assert have == whole | {"masters": 0, "moments": 0, "gradients": 0}
        assert trainer.offload.freed_bytes == whole["masters"] + whole["moments"] + whole["gradients"] <= gone
        assert whole["moments"] == whole["masters"] * (2 if moments == "fp32" else 1) > 0
        assert all(piece.is_pinned() for update in trainer.offload._updates for piece in update.store._room)
        # As a cache would, at once, while copies to the host are still on their way.
        cache = torch.full((trainer.offload.freed_bytes // 4,), float("nan"), device="cuda")
        assert math.isfinite(trainer.evaluate(step_batches(99), SFTLoss()).mean("loss")) and bool(cache[-1].isnan())
        del cache
        trainer.offload.bring_back()
        assert all(torch.equal(tensor.cpu(), wanted) for tensor, wanted in zip(digest(trainer), before, strict=True))
        assert abs(torch.cuda.memory_allocated() - full) < 0.01 * full and storages(trainer) == (whole, whole)
    del trainer, model
