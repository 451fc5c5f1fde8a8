"""Packs that go through the model together: the same losses and weights as one by one, under every kind of layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from megatron_ring.config.micro_batches import packs_of_micro_batches
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.data.packed_epochs import PackedEpochs
from megatron_ring.data.packing import MicroBatch, pack_sequences, plan_packs
from megatron_ring.data.sequences import TokenSequence
from tests.layouts import LAYOUTS

CAPACITY, GLOBAL_BATCH, STEPS = 64, 4, 4
# So large an epsilon keeps Adam from making a step of the rounding where a gradient is nearly 0.
OPTIMIZER = OptimizerConfig(lr=2e-3, clip_grad=0.5, eps=1e-3)
ROUTER = RouterLossConfig(balance=0.0, z=1e-3)


class Packs(PackedEpochs[MicroBatch]):
    """A learnable language (each token follows from the last), uneven lengths; the last step of an epoch is half empty."""

    def __init__(self) -> None:
        super().__init__(CAPACITY, GLOBAL_BATCH, seed=1)
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(5, 40, (60,), generator=generator).tolist()
        self.sequences = [
            TokenSequence([(place * 31 + 7 * i) % 300 for i in range(length)], [i > 1 for i in range(length)])
            for place, length in enumerate(lengths)
        ]
        self._set_plan(plan_packs(lengths, CAPACITY, 0)[: GLOBAL_BATCH * (STEPS - 1) + 2])

    def _micro_batch(self, items: Sequence[int], tokens: int) -> MicroBatch:
        return pack_sequences([self.sequences[item] for item in items], tokens, 0)


def sequences(batches: Sequence[MicroBatch]) -> list[tuple[list[int], list[bool], list[int]]]:
    found = []
    for batch in batches:
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            if batch.token_mask[start]:
                part = slice(start, end)
                found.append((batch.tokens[part].tolist(), batch.loss_mask[part].tolist(), batch.positions[part].tolist()))
    return found


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_has_the_same_sequences(parts: int) -> None:
    packs = Packs()
    for step, part, most in itertools.product(range(packs.steps_per_epoch), range(parts), range(1, GLOBAL_BATCH + 1)):
        sizes = packs_of_micro_batches(GLOBAL_BATCH // parts, most, False)
        together = packs.batch(1, step, part, parts, sizes)
        assert [batch.tokens.numel() for batch in together] == [size * CAPACITY for size in sizes]
        assert sequences(together) == sequences(packs.batch(1, step, part, parts))
    with pytest.raises(ValueError, match="the share of a rank is 4"):
        packs.batch(0, 0, 0, 1, [3])


def train(parallel: ParallelConfig, most: int) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Loss and gradient norm of each step, and this rank's weights at the end."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here, ROUTER)
    initialize_weights(model, seed=2)
    trainer, packs, curve = Trainer(model, here, OPTIMIZER), Packs(), []
    sizes = packs_of_micro_batches(GLOBAL_BATCH // here.data_size, most, parallel.pipeline > 1)
    for step in range(STEPS):
        batches = packs.batch(0, step, here.data_rank, here.data_size, sizes)
        result = trainer.train_step(batches, SFTLoss(), OPTIMIZER.lr)
        held = trainer.evaluate(batches, SFTLoss())
        curve.append([result.mean("loss"), result.mean("entropy"), result.grad_norm, result.z, held.mean("loss")])
    return curve, {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.distributed
def test_losses_and_weights_are_those_of_one_by_one(run_on: Any) -> None:
    alone, weights = run_on(1, train, ParallelConfig(), 1)[0]
    for layout, most in (("one", 3), ("one", 4), ("dp2", 2), ("ep2", 2), ("pp2", 2)):
        processes, parallel = LAYOUTS[layout]
        for curve, held in run_on(processes, train, parallel, most):
            for step, (found, wanted) in enumerate(zip(curve, alone, strict=True)):
                assert found == pytest.approx(wanted, rel=2e-5), (layout, step)
            for name, weight in held.items():
                if weight.shape == weights[name].shape and layout in ("one", "dp2"):
                    assert (weight - weights[name]).abs().max() < 1e-6, (layout, name)
