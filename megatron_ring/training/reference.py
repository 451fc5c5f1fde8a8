"""The reference policy of the KL term: the weights that RL started from, held beside the model and swapped in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from megatron_ring.data.packing import PolicyBatch
from megatron_ring.model.logprobs import logprobs_and_entropy
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
        """The same micro-batches with `ref_logprobs` fp32 [T] (on the last pipeline stage, which alone needs them)."""
        found: list[torch.Tensor] = []
        tensor_rank = self.trainer.context.tensor_rank

        def collect(logits_tv: torch.Tensor, batch: PolicyBatch) -> LossOutput:
            logprobs, _ = logprobs_and_entropy(logits_tv, batch.targets, tensor_rank, self.temperature)
            found.append(logprobs.cpu())
            return LossOutput(logprobs.sum(), batch.loss_mask.sum())

        with self._in_place_of_the_model():
            self.trainer.evaluate(batches, collect)
        if not found:
            return list(batches)
        return [dataclasses.replace(batch, ref_logprobs=ref) for batch, ref in zip(batches, found, strict=True)]
