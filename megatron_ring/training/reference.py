"""The reference policy of the KL term: other weights, held beside the model's and exchanged with them for a pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.pieces import persistent_buffers
from megatron_ring.checkpoint.saving import save_checkpoint
from megatron_ring.data.packing import PolicyBatch
from megatron_ring.parallel.device import has_cuda
from megatron_ring.training.first_pass import evaluated_logprobs
from megatron_ring.training.trainer import Trainer


class ReferencePolicy:
    """A frozen copy of this rank's weights and persistent buffers (same dtypes), on the device or in host memory, pinned
    where there is CUDA.

    A pass exchanges it with the model's weights, one tensor at a time: no third copy is ever held.
    """

    def __init__(self, trainer: Trainer, temperature: float, place: Literal["device", "host"] = "device") -> None:
        """Copies the model's weights as they are now."""
        self.trainer, self.temperature = trainer, temperature
        self.step = self._saved = 0  # the step after which the model had these weights; 0: before the first
        on_host = place == "host"
        self.weights = [
            torch.empty_like(tensor, device="cpu" if on_host else None, pin_memory=on_host and has_cuda())
            for tensor in self._of_the_model()
        ]
        self.refresh(0)

    def _of_the_model(self) -> list[torch.Tensor]:
        return [*self.trainer.model.parameters(), *persistent_buffers(self.trainer.model)]

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Take the model's weights, those after `step`, as the reference."""
        for held, tensor in zip(self.weights, self._of_the_model(), strict=True):
            held.copy_(tensor.data)
        self.step = step

    def start_over(self) -> None:
        """Take the model's weights, those that RL starts from, as if nothing had been saved."""
        self.refresh(0)
        self._saved = 0

    @contextmanager
    def in_place_of_the_model(self) -> Iterator[None]:
        """Within it the model has the reference's weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for held, tensor in zip(self.weights, self._of_the_model(), strict=True):
            current = tensor.data.clone()
            tensor.data.copy_(held, non_blocking=True)
            held.copy_(current)  # on the same stream, so behind the copy that reads what this overwrites

    def annotate(self, batches: Sequence[PolicyBatch]) -> list[PolicyBatch]:
        """The same micro-batches with `ref_logprobs` fp32 [T], 0 at tokens that do not count in the loss (on the last
        pipeline stage, which alone needs them)."""
        own = [dataclasses.replace(batch, routes=None) for batch in batches]  # other weights route for themselves
        with self.in_place_of_the_model():
            logprobs = evaluated_logprobs(self.trainer, self.temperature, own)
        if logprobs is None:
            return list(batches)
        return [dataclasses.replace(batch, ref_logprobs=ref) for batch, ref in zip(batches, logprobs, strict=True)]

    def save(self, folder: Path) -> None:
        """Write the weights to `folder`/step_N unless RL started from them or they are there; those written before are kept,
        which the last whole checkpoint may name. All ranks take part and wait.

        Raises:
            UserError: the disk is full or not writable.
        """
        if self.step == self._saved:
            return
        with self.in_place_of_the_model():
            save_checkpoint(folder, self.step, self.trainer.model, None, self.trainer.context, {}, keep_last=2)
        self._saved = self.step

    def load(self, folder: Path, step: int) -> None:
        """Become the weights that `save` wrote at `step` (0: stay as built). Later ones, left by a kill or by a run that was
        set back to an older checkpoint, are replaced when the run comes to their step.

        Raises:
            UserError: they are not there, or damaged.
        """
        if step:
            with self.in_place_of_the_model():
                load_checkpoint(folder / f"step_{step}", self.trainer.model, self.trainer.context)
            self.step = self._saved = step
