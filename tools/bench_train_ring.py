"""This project's model as contenders of bench_train.py: bare, and through the trainer that every stage uses."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.data.packing import MicroBatch
from megatron_ring.errors import UserError
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, build_model, forward_packed
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.training.losses import SFTLoss
from megatron_ring.training.trainer import Trainer

if TYPE_CHECKING:  # see bench_train_measure
    from tools.bench_train_work import Clock, PackedTokens, PlainStep, fill_with_noise
else:
    from bench_train_work import Clock, PackedTokens, PlainStep, fill_with_noise

LEARNING_RATE = 1e-5  # of every contender


def build_ring(
    shape: ModelConfig, context: ParallelContext, dtype: torch.dtype, layer_impl: str, recompute: str
) -> RingModel:
    """The model with random weights.

    Raises:
        UserError: this version of the model has no such option.
    """
    known = inspect.signature(build_model).parameters
    options: dict[str, Any] = {}
    for name, value, default in (("layer_impl", layer_impl, "native"), ("recompute", recompute, "none")):
        if name in known:
            options[name] = value
        elif value != default:
            raise UserError(f"--{name.replace('_', '-')} {value}: the model has no such option")
    model = build_model(shape, context, dtype=dtype, **options)
    fill_with_noise(model, shape.init_std)
    return model


class BareRing(PlainStep):
    """Forward, loss and backward into `.grad`: no buffers of megatron-core's, no optimizer."""

    def __init__(self, model: RingModel, batches: Sequence[PackedTokens]) -> None:
        for module in (model.config, *model.modules()):
            if hasattr(module, "gradient_accumulation_fusion"):  # it adds to buffers that are not there
                setattr(module, "gradient_accumulation_fusion", False)  # noqa: B010
        self.ring = model
        self.total = sum(batch.tokens.numel() for batch in batches)
        super().__init__(model, [partial(self._loss, batch, batch.positions) for batch in batches])

    def step(self, clock: Clock) -> torch.Tensor:
        self.ring.router_losses.start_step(1.0)
        return super().step(clock)

    def _loss(self, batch: PackedTokens, positions: torch.Tensor) -> torch.Tensor:
        hidden = forward_packed(self.ring, batch.tokens, PackedLayout(positions, batch.lengths))
        rows = torch.arange(batch.tokens.numel(), device=batch.tokens.device)

        def token_loss(logprobs: torch.Tensor, _entropies: torch.Tensor, _part: slice) -> torch.Tensor:
            return -logprobs.sum() / self.total

        loss: torch.Tensor = self.ring.output_layer.loss(hidden, rows, batch.targets, 1.0, token_loss)
        return loss


class TrainedRing:
    """Whole training steps of SFT: gradient buffers, clipping, distributed optimizer, metrics."""

    def __init__(
        self,
        model: RingModel,
        context: ParallelContext,
        batches: Sequence[PackedTokens],
        moments: Literal["fp32", "bf16"],
        apex: Literal["off", "gradients", "adam", "both"] = "off",
    ) -> None:
        settings = OptimizerConfig(lr=LEARNING_RATE, schedule="constant", moments=moments, apex=apex)
        self.trainer = Trainer(model, context, settings)
        self.batches = [_micro_batch(batch) for batch in batches]
        self.loss = SFTLoss()
        self.clock: Clock | None = None
        self.trainer.ddp.register_forward_pre_hook(lambda *_: self._mark("backward" if self._after_forward() else "rest"))
        self.trainer.ddp.register_forward_hook(lambda *_: self._mark("forward"))
        if context.last_stage:
            head: Any = model.output_layer
            head.loss = self._marking(head.loss, "forward")
        optimizer = self.trainer.optimizer
        optimizer.prepare_grads = self._marking(optimizer.prepare_grads, "optimizer", before="backward")
        optimizer.step_with_ready_grads = self._marking(optimizer.step_with_ready_grads, "optimizer")

    def _after_forward(self) -> bool:
        return self.clock is not None and self.clock.last == "forward"

    def _mark(self, phase: str) -> None:
        if self.clock is not None:
            self.clock.end(phase)

    def _marking(self, work: Any, after: str, before: str | None = None) -> Any:
        """`work`, its end marked as that of a phase, and so its beginning."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                self._mark(before)
            result = work(*args, **kwargs)
            self._mark(after)
            return result

        return marked

    def step(self, clock: Clock) -> float:
        self.clock = clock
        result = self.trainer.train_step(self.batches, self.loss, LEARNING_RATE)
        return result.mean("loss")


def _micro_batch(batch: PackedTokens) -> MicroBatch:
    """On the host, as the data loaders give it."""
    every = torch.ones(batch.tokens.numel(), dtype=torch.bool)
    return MicroBatch(
        tokens=batch.tokens.cpu(),
        targets=batch.targets.cpu(),
        loss_mask=every,
        positions=batch.positions.cpu(),
        cu_seqlens=batch.bounds.cpu(),
        token_mask=every,
    )
