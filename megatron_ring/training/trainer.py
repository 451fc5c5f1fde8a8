"""One training state (model, gradients, optimizer) and the step that every stage takes, on megatron-core's schedules.

Means are global: a loss is a sum over tokens; gradients are divided once, in the optimizer's pass, by the number of loss
tokens of the whole step, over all micro-batches and data-parallel ranks. A reward model's loss is a sum over pairs, which
take the tokens' place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import OptimizerConfig as McoreOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.data.packing import MicroBatch
from megatron_ring.model.layout import PackedLayout
from megatron_ring.model.ring_model import RingModel, forward_packed
from megatron_ring.model.routes import GivenRoutes
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import moved_to
from megatron_ring.training import apex
from megatron_ring.training.adamw import FusedAdamW, install, update
from megatron_ring.training.gradient_buffers import GradientBuffers
from megatron_ring.training.loss_output import LossOutput, PendingFigures
from megatron_ring.training.offload import StateOffload


class Loss(Protocol):
    """A loss that is a sum over tokens; called on the last pipeline stage only, with a part of a micro-batch at a time."""

    @property
    def temperature(self) -> float:
        """Softmax temperature of the distribution."""
        ...

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: Any) -> LossOutput:
        """Log-probabilities of the targets and entropies, fp32 [n], of tokens that count in the loss; their batch fields."""
        ...


class RewardLoss(Protocol):
    """A loss on the rewards of a model that has a score; called on the last pipeline stage only, once a micro-batch."""

    def __call__(self, rewards: torch.Tensor, batch: Any) -> LossOutput:
        """Rewards fp32 [n] at the tokens that count in the loss, in their order; their batch fields."""
        ...


AnyLoss = Loss | RewardLoss


@dataclass(frozen=True)
class StepResult:
    """Global figures of one step, equal on every rank. `loss_tokens`: terms of the mean (`MicroBatch.loss_terms`). `sums`
    and `maxima` carry the loss's names; `attention` names the kernels that computed this rank's attention
    (`attention_kernels.KERNELS`), joined by "+"; `router_disagreement` is the share of given experts (`PolicyBatch.routes`)
    that the routers would not have chosen, None where none were given. `loads`: the tokens that each expert got, by MoE
    layer; empty where they are not counted. `updated`: whether the weights were."""

    loss_tokens: int
    routed_tokens: int
    sums: dict[str, float]
    maxima: dict[str, float]
    balance: float
    z: float
    router_disagreement: float | None
    attention: str
    grad_norm: float = 0.0
    loads: tuple[tuple[float, ...], ...] = ()
    updated: bool = False

    def mean(self, name: str) -> float:
        """`sums[name]` per loss token, or pair."""
        return self.sums[name] / max(1, self.loss_tokens)


class Trainer:
    """Model, gradient buffers and distributed optimizer of this process."""

    def __init__(self, model: RingModel, context: ParallelContext, config: OptimizerConfig) -> None:
        """Raises `UserError` where `config` asks for what is not there."""
        add = apex.gradient_product() if config.apex in ("gradients", "both") else None
        adamw = apex.ApexAdamW if config.apex in ("adam", "both") else FusedAdamW
        self.context = context
        self.model = model
        self.optimizer_config = config
        self.ddp = DistributedDataParallel(
            config=model.config,
            ddp_config=DistributedDataParallelConfig(
                use_distributed_optimizer=True,
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=context.device.type == "cuda" and context.data_size > 1,
            ),
            module=model,
        )
        self.optimizer = get_megatron_optimizer(
            McoreOptimizerConfig(
                optimizer="adam",
                lr=config.lr,
                weight_decay=config.weight_decay,
                adam_beta1=config.beta1,
                adam_beta2=config.beta2,
                adam_eps=config.eps,
                clip_grad=0.0,  # `update` clips
                bf16=model.config.bf16,
                params_dtype=model.config.params_dtype,
                use_distributed_optimizer=True,
            ),
            [self.ddp],
        )
        install(self.optimizer, config.moments, adamw)
        self.buffers = GradientBuffers(self.ddp, add)
        self.offload = StateOffload(self.optimizer, self.buffers)
        # Not a method: the configuration would hold the trainer in a cycle that Python cannot see, and with it all groups.
        model.config.finalize_model_grads_func = partial(_finalize_gradients, self.buffers)
        model.config.no_sync_func = self.ddp.no_sync

    def train_step(
        self,
        batches: Sequence[MicroBatch],
        loss: AnyLoss,
        lr: float,
        accepts: Callable[[StepResult], bool] | None = None,
    ) -> StepResult:
        """One optimizer update from this rank's micro-batches; every rank must bring the same number of them.

        Args:
            accepts: told the step's figures before the update; false leaves it out. The same on all ranks.

        Raises:
            FloatingPointError: the loss or the gradients are not finite; the weights are unchanged.
        """
        self.model.train()
        self.buffers.start_step()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_mult", 1.0)
            group["weight_decay"] = self.optimizer_config.weight_decay * group.get("wd_mult", 1.0)
        found = self._run(batches, loss, forward_only=False)
        # The norm is read by the host: the figures have come by then.
        updated, grad_norm = update(
            self.optimizer, self.optimizer_config.clip_grad, max(1, found.loss_tokens),
            lambda norm: accepts is None or accepts(found.result(norm)),
        )  # fmt: skip
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"gradient norm is {grad_norm}")
        if updated and found.loads is not None:
            self.model.balance_biases(found.loads)
        return replace(found.result(grad_norm), updated=updated)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[MicroBatch], loss: AnyLoss) -> StepResult:
        """Figures of `loss` over this rank's micro-batches and all others', without training."""
        self.model.eval()
        return self._run(batches, loss, forward_only=True).result(0.0)

    def _run(self, batches: Sequence[MicroBatch], loss: AnyLoss, forward_only: bool) -> _Ran:
        device, losses = self.context.device, self.model.router_losses
        counts = [sum(b.loss_terms for b in batches), sum(int(b.token_mask.sum()) for b in batches)]
        loss_tokens, routed_tokens = collectives.sum_counts_over_data(counts, device)
        losses.start_step(loss_tokens / max(1, routed_tokens))
        outputs, kernels = run_schedule(self.ddp, batches, loss, device, forward_only)
        figures = PendingFigures(outputs, self._over_ranks(losses.local_sums(device)))
        loads = None
        if losses.counts_loads and not forward_only:
            shape = self.model.ring_config
            layers = range(shape.first_dense_layers, shape.num_layers)
            loads = self._over_ranks(losses.local_loads(layers, shape.num_experts, device))
        return _Ran(loss_tokens, routed_tokens, "+".join(sorted(kernels)), figures, loads)

    def _over_ranks(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums over the tokens and layers of this rank, summed over all ranks, in place."""
        collectives.sum_over_data(sums)
        if self.model.config.sequence_parallel:
            collectives.sum_over_tensor(sums)
        return collectives.sum_over_pipeline(sums)


@dataclass(frozen=True)
class _Ran:
    """A step's passes, given to the device."""

    loss_tokens: int
    routed_tokens: int
    attention: str
    figures: PendingFigures
    loads: torch.Tensor | None  # fp64 [MoE layers, E]

    def result(self, grad_norm: float) -> StepResult:
        loads = () if self.loads is None else tuple(map(tuple, self.loads.tolist()))
        return StepResult(self.loss_tokens, self.routed_tokens, *self.figures.read(), self.attention, grad_norm, loads)


def _finalize_gradients(buffers: GradientBuffers, model: Any, _num_tokens: Any = None, **settings: Any) -> None:
    """megatron-core's, but for its pass over all gradients to divide them: `update` does."""
    buffers.end_backward()
    finalize_model_grads(model, None, **settings)


def sequence_lengths(batch: MicroBatch) -> list[int]:
    """Tokens of each packed sequence; the padding behind them is none. For a micro-batch on the host."""
    bounds = batch.cu_seqlens.tolist()
    real = int(batch.token_mask.sum())
    return [end - start for start, end in pairwise(bounds) if end <= real]


def run_schedule(
    ddp: Any, batches: Sequence[MicroBatch], loss: AnyLoss, device: torch.device, forward_only: bool
) -> tuple[list[LossOutput], set[str]]:
    """Run megatron-core's pipeline schedule over micro-batches.

    Returns:
        what the loss gave, in order, on the last stage; the kernels that computed attention.
    """
    outputs: list[LossOutput] = []
    kernels: set[str] = set()

    def forward_step(iterator: Any, model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
        host = next(iterator)
        batch = host.to(device)
        layout = PackedLayout(batch.positions, sequence_lengths(host))
        routes = getattr(batch, "routes", None)
        if routes is not None:
            layout.routes = GivenRoutes(routes, batch.loss_mask, ddp.module.route_layers.start)
        rows = moved_to(host.loss_mask.nonzero()[:, 0], device)  # found on the host: no device sync
        hidden = forward_packed(model, batch.tokens, layout, padding=~batch.token_mask)
        if layout.kernel is not None:
            kernels.add(layout.kernel)

        def reduce(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            total = head_loss(ddp.module, hidden, rows, batch.at(rows), loss, outputs)
            return total, torch.full((), rows.numel(), dtype=torch.int, device=device), {}

        return hidden, reduce

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(batches),
        model=[ddp],
        num_microbatches=len(batches),
        seq_length=batches[0].tokens.numel(),
        micro_batch_size=1,
        forward_only=forward_only,
    )
    return outputs, kernels


def head_loss(
    model: RingModel, hidden: torch.Tensor, rows: torch.Tensor, counted: Any, loss: Any, outputs: list[LossOutput]
) -> torch.Tensor:
    """The sum of a loss over the tokens `rows` (int64 [n], with the batch fields `counted`), differentiable in the hidden
    states of the last stage; what the loss gives goes to `outputs`."""

    def noted(output: LossOutput) -> torch.Tensor:
        outputs.append(LossOutput(output.loss.detach(), output.sums, output.maxima))
        return output.loss

    if model.ring_config.head == "score":
        return noted(loss(model.score.rewards(hidden, rows), counted))

    def token_loss(logprobs: torch.Tensor, entropies: torch.Tensor, part: slice) -> torch.Tensor:
        return noted(loss(logprobs, entropies, counted.at(part)))

    total: torch.Tensor = model.output_layer.loss(hidden, rows, counted.targets, loss.temperature, token_loss)
    return total
