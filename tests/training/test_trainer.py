"""The training step: one process against every layout, and against plain autograd with torch's own AdamW."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.data.packing import MicroBatch, empty_microbatch, pack_sequences
from megatron_ring.data.sequences import TokenSequence
from tests.layouts import LAYOUTS

CAPACITY, GLOBAL_BATCH, STEPS = 128, 4, 8
OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_fraction=0.1, clip_grad=0.5)
ROUTER = RouterLossConfig(balance=1e-2, z=1e-3)
# Nothing divides: three layers over two stages, 511 tokens over two ranks; a dense layer, biases.
ODD = replace(RING_TINY, num_layers=3, vocab_size=511, first_dense_layers=1, qkv_bias=True)
SHAPES = {"tiny": RING_TINY, "odd": ODD}


def step_batches(step: int) -> list[MicroBatch]:
    """A learnable language (each token follows from the last), uneven lengths, one empty micro-batch now and then."""
    generator = torch.Generator().manual_seed(step)
    batches = []
    for _ in range(GLOBAL_BATCH):
        sequences, room = [], CAPACITY
        while room > 12:
            length = int(torch.randint(5, min(50, room), (1,), generator=generator))
            first = int(torch.randint(300, (1,), generator=generator))
            tokens = [(first * 3 + 7 * i) % 300 for i in range(length)]
            sequences.append(TokenSequence(tokens, [i > 1 for i in range(length)]))
            room -= length
        batches.append(pack_sequences(sequences, CAPACITY, 0))
    if step % 5 == 4:
        batches[-1] = empty_microbatch(CAPACITY, 0)
    return batches


def train(
    parallel: ParallelConfig, shape: ModelConfig, recompute: Any = "none", steps: int = STEPS
) -> list[dict[str, float]]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here, ROUTER, recompute=recompute)
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OPTIMIZER)
    curve = []
    for step in range(steps):
        batches = step_batches(step)[here.data_rank :: here.data_size]
        result = trainer.train_step(batches, SFTLoss(), OPTIMIZER.lr_at(step, STEPS))
        curve.append(
            {
                "loss": result.mean("loss"),
                "entropy": result.mean("entropy"),
                "grad_norm": result.grad_norm,
                "balance": result.balance,
                "z": result.z,
                "loss_tokens": result.loss_tokens,
                "routed_tokens": result.routed_tokens,
            }
        )
    return curve


@pytest.fixture(scope="module")
def alone() -> dict[str, list[dict[str, float]]]:
    """Curves of one process, by shape, once they have been computed."""
    return {}


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "layout"), [*(("tiny", name) for name in LAYOUTS if name != "one"), ("odd", "tp2"), ("odd", "pp2")]
)
def test_every_layout_trains_the_same_curve(run_on, alone: dict[str, Any], name: str, layout: str) -> None:
    if name not in alone:
        alone[name] = run_on(1, train, ParallelConfig(), SHAPES[name])[0]
    processes, parallel = LAYOUTS[layout]
    for curve in run_on(processes, train, parallel, SHAPES[name]):
        assert len(curve) == STEPS
        for step, (found, wanted) in enumerate(zip(curve, alone[name], strict=True)):
            assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4), (step, found, wanted)
            assert found == pytest.approx(wanted, rel=1e-2), step
    assert alone[name][-1]["loss"] < 0.9 * alone[name][0]["loss"]


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("recompute", ["experts", "full"])
@pytest.mark.parametrize("layout", ["one", "tp2", "ep2"])
def test_recomputing_changes_nothing(run_on, alone: dict[str, Any], recompute: str, layout: str) -> None:
    """Bit for bit where nothing else differs, and router losses counted once; also after an empty micro-batch, the fifth
    step's."""
    processes, parallel = LAYOUTS[layout]
    if layout not in alone:
        alone[layout] = run_on(processes, train, parallel, RING_TINY, "none", 6)[0]
    for curve in run_on(processes, train, parallel, RING_TINY, recompute, 6):
        assert curve == alone[layout] and len(curve) == 6


def plain_autograd() -> dict[str, Any]:
    """Three steps by hand: one loss over all tokens, autograd, norm clipping, torch.optim.AdamW."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_packed
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import sequence_lengths

    here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig(0.0, 0.0))
    initialize_weights(model, seed=2)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}],
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.eps,
    )
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    figures: dict[str, Any] = {"loss": [], "grad_norm": [], "first": first}
    for step in range(3):
        nll, tokens = torch.zeros(()), 0
        for batch in step_batches(step):
            layout = PackedLayout(batch.positions, sequence_lengths(batch))
            logits = forward_packed(model, batch.tokens, layout)[:, 0] @ model.output_layer.weight.t()
            each = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
            nll = nll + each[batch.loss_mask].sum()
            tokens += int(batch.loss_mask.sum())
        optimizer.zero_grad()
        (nll / tokens).backward()
        figures["loss"].append((nll / tokens).item())
        figures["grad_norm"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_grad).item())
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.lr_at(step, STEPS)
        optimizer.step()
    figures["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
    return figures


def through_the_trainer() -> dict[str, Any]:
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig(0.0, 0.0))
    initialize_weights(model, seed=2)
    trainer = Trainer(model, here, OPTIMIZER)
    results = [trainer.train_step(step_batches(s), SFTLoss(), OPTIMIZER.lr_at(s, STEPS)) for s in range(3)]
    return {
        "loss": [result.mean("loss") for result in results],
        "grad_norm": [result.grad_norm for result in results],
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
    }


@pytest.mark.distributed
def test_the_step_equals_plain_autograd_and_adamw(run_on) -> None:
    (wanted,), (found,) = run_on(1, plain_autograd), run_on(1, through_the_trainer)
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
    for name, weight in wanted["weights"].items():
        # Adam divides by the gradient's size, so where a gradient is nearly zero rounding decides its sign.
        moved = (weight - wanted["first"][name]).norm()
        assert (found["weights"][name] - weight).norm() < 0.01 * moved, name


def left_behind(parallel: ParallelConfig) -> int:
    """Models of earlier calls that are still in this process's memory, before one more is made."""
    import gc

    from megatron_ring.model.ring_model import RingModel

    left = sum(type(held) is RingModel for held in gc.get_objects())
    train(parallel, RING_TINY, steps=1)
    return left


@pytest.mark.distributed
@pytest.mark.parametrize("layout", ["dp2", "ep2", "tp2_etp2"])
def test_a_trainer_goes_with_its_groups(run_on, layout: str) -> None:
    """Every process group of gloo has threads of its own: what holds a model after the shutdown holds them."""
    _, parallel = LAYOUTS[layout]
    before = run_on(2, left_behind, parallel)  # whatever other tests left
    assert run_on(2, left_behind, parallel) == before


def with_short_moments() -> str:
    from megatron_ring.errors import UserError
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(ParallelConfig(), RING_TINY, seed=0)
    try:
        Trainer(build_model(RING_TINY, here, ROUTER), here, replace(OPTIMIZER, moments="bf16"))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA has them")
def test_short_moments_are_refused_on_a_cpu(run_on) -> None:
    assert run_on(1, with_short_moments)[0].startswith("--optimizer.moments bf16: for CUDA devices only")
