"""Forward passes over a step's micro-batches before its update, whose log-probabilities the loss needs beside its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from megatron_ring.algorithm.corrections import Correction
from megatron_ring.algorithm.sequences import sequence_log_ratios
from megatron_ring.data.packing import PolicyBatch
from megatron_ring.training.loss_output import LossOutput
from megatron_ring.training.policy_loss import PolicyLoss
from megatron_ring.training.trainer import Trainer


def evaluated_logprobs(trainer: Trainer, temperature: float, batches: Sequence[PolicyBatch]) -> list[torch.Tensor] | None:
    """Log-probabilities of the targets under the model's weights as they are, fp32 [T] for each micro-batch, on the host; 0
    at tokens that do not count in the loss. None but on the last pipeline stage, which alone needs them."""
    collected = _Collect(temperature, [])
    trainer.evaluate(batches, collected)
    if not trainer.context.last_stage:
        return None
    of_batches, logprobs = [], torch.cat(collected.logprobs)
    for batch in batches:
        count = int(batch.loss_mask.sum())
        placed = torch.zeros(batch.loss_mask.shape)
        placed[batch.loss_mask], logprobs = logprobs[:count], logprobs[count:]
        of_batches.append(placed)
    return of_batches


class FirstPass:
    """Recomputes the policy's own log-probabilities where an objective or a correction asks for them."""

    def __init__(self, trainer: Trainer, loss: PolicyLoss, recompute: bool, correction: Correction | None = None) -> None:
        """`recompute`: the ratio's denominator is the recomputed log-probability instead of the sampler's; a correction
        needs it."""
        self.trainer, self.temperature, self.objective = trainer, loss.temperature, loss.objective
        self.recompute, self.correction = recompute, correction

    def annotate(self, batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """The same micro-batches with `old_logprobs`, `sequence_log_ratio` and `corrections` as far as they are needed. All
        ranks take part; without any need nothing is computed."""
        if not self.recompute and not self.objective.sequence_level:
            return list(batches)
        logprobs = evaluated_logprobs(self.trainer, self.temperature, batches)
        annotated = list(batches)
        for i, (batch, now) in enumerate(zip(batches, logprobs or [], strict=bool(logprobs))):
            old = now if self.recompute else batch.sampler_logprobs
            annotated[i] = dataclasses.replace(
                batch,
                old_logprobs=old,
                sequence_log_ratio=self._sequence_log_ratio(batch, now - old),
                corrections=None if self.correction is None else self.correction.weights(old, batch.sampler_logprobs),
            )
        return annotated

    def renewed(self, batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """Annotated micro-batches with `sequence_log_ratio` under the weights as they are now, where the objective has one;
        all else stays. For updates behind a step's first. All ranks take part."""
        if not self.objective.sequence_level:
            return list(batches)
        logprobs = evaluated_logprobs(self.trainer, self.temperature, batches)
        renewed = list(batches)
        for i, (batch, now) in enumerate(zip(batches, logprobs or [], strict=bool(logprobs))):
            old = batch.sampler_logprobs if batch.old_logprobs is None else batch.old_logprobs
            renewed[i] = dataclasses.replace(batch, sequence_log_ratio=self._sequence_log_ratio(batch, now - old))
        return renewed

    def _sequence_log_ratio(self, batch: PolicyBatch, log_ratio: torch.Tensor) -> torch.Tensor | None:
        if not self.objective.sequence_level:
            return None
        return sequence_log_ratios(log_ratio, batch.loss_mask, batch.cu_seqlens)


@dataclasses.dataclass(frozen=True)
class _Collect:
    """A loss that keeps the log-probabilities it is given."""

    temperature: float
    logprobs: list[torch.Tensor]

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: PolicyBatch) -> LossOutput:
        self.logprobs.append(logprobs.detach().cpu())
        return LossOutput(logprobs.sum())
