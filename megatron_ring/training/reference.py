"""The reference policy of the KL term: the weights that RL started from, held beside the model and swapped in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from megatron_ring.data.packing import PolicyBatch
from megatron_ring.training.trainer import LossOutput, Trainer


class ReferencePolicy:
    """A frozen copy of this rank's weights (same dtype, same device)."""

    def __init__(self, trainer: Trainer, temperature: float) -> None:
        """Copies the model's weights as they are now."""
        self.trainer, self.temperature = trainer, temperature
        self.weights = [parameter.detach().clone() for parameter in trainer.model.parameters()]

    @contextmanager
    def _in_place_of_the_model(self) -> Iterator[None]:
        parameters = list(self.trainer.model.parameters())
        current = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_copy_([parameter.data for parameter in parameters], self.weights)
            try:
                yield
            finally:
                torch._foreach_copy_([parameter.data for parameter in parameters], current)

    def annotate(self, batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """The same micro-batches with `ref_logprobs` fp32 [T], 0 at tokens that do not count in the loss (on the last
        pipeline stage, which alone needs them)."""
        collected = _Collect(self.temperature, [])
        with self._in_place_of_the_model():
            self.trainer.evaluate(batches, collected)
        if not collected.logprobs:
            return list(batches)
        annotated, logprobs = [], torch.cat(collected.logprobs)
        for batch in batches:
            count = int(batch.loss_mask.sum())
            ref = torch.zeros(batch.loss_mask.shape)
            ref[batch.loss_mask], logprobs = logprobs[:count], logprobs[count:]
            annotated.append(dataclasses.replace(batch, ref_logprobs=ref))
        return annotated


@dataclasses.dataclass(frozen=True)
class _Collect:
    """A loss that keeps the log-probabilities it is given."""

    temperature: float
    logprobs: list[torch.Tensor]

    def __call__(self, logprobs: torch.Tensor, entropies: torch.Tensor, batch: PolicyBatch) -> LossOutput:
        self.logprobs.append(logprobs.detach().cpu())
        return LossOutput(logprobs.sum())
