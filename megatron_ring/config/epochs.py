"""What stages that train in epochs over a file have in common. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PackedDataConfig(Columns):
    """A file that is packed, and how many of its packs a step takes."""

    context_length: int
    """Length of a packed sequence (tokens)."""
    global_batch: int
    """Packed sequences per optimizer step, over all data-parallel ranks."""
    micro_batch_tokens: int | Literal["auto"] = field(default="auto", metadata=MAY_CHANGE)
    """Most tokens of a micro-batch: packed sequences of a rank go through the model together as far as they fit, one at
    least. auto: on a GPU as many as the memory plan allows, up to 65,536 tokens, with a pipeline no fewer than 4
    micro-batches a stage; on a CPU up to 512 tokens. The router is balanced over the tokens of a micro-batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.context_length >= 2, f"--data.context-length is {self.context_length}, below 2")
        require(self.global_batch >= 1, f"--data.global-batch is {self.global_batch}, below 1")
        tokens, context = self.micro_batch_tokens, self.context_length
        require(
            tokens == "auto" or tokens >= context,
            f"--data.micro-batch-tokens is {tokens}, below --data.context-length {context}: a micro-batch holds a whole "
            f"packed sequence",
        )


@dataclass(frozen=True, kw_only=True)
class EpochsConfig(TrainingConfig, DryRun):
    """A run of epochs, with a checkpoint after each."""

    preset: str | None = None
    """Model shape by name (ring-lite, ring-tiny, …; default: that of the weights to start from)."""
    init_from: Path | None = field(default=None, metadata=BY_CONTENT)
    """Checkpoint or Hugging Face folder to start from; default: random weights of the preset."""
    epochs: int = field(default=3, metadata=MAY_CHANGE)
    """Passes over the data; each ends with a checkpoint. The learning-rate schedule runs over all of them."""
    max_steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Stop after this many optimizer steps (default: all of them); the learning-rate schedule is not shortened."""
    save_every: int | None = field(default=None, metadata=MAY_CHANGE)
    """Also save every so many steps (default: at the end of each epoch only)."""
    save_epochs: int = field(default=1, metadata=MAY_CHANGE)
    """Epochs between checkpoints; the last epoch ends with one in any case. Only epochs with a checkpoint can be chosen."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=MAY_CHANGE)
    data: PackedDataConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, f"--epochs is {self.epochs}, below 1")
        for name in ("max_steps", "save_every", "save_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")

    @property
    def new_shape(self) -> str | None:
        return self.preset

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot be split over so many data-parallel ranks."""
        batch, context, tensor = self.data.global_batch, self.data.context_length, self.parallel.tensor
        require(batch % data_size == 0, f"--data.global-batch {batch} does not split over {data_size} data-parallel rank(s)")
        require(context % tensor == 0, f"--data.context-length {context} does not split over TP={tensor} ranks")

    def micro_batches(self, data_size: int) -> list[int]:
        """How many packed sequences each micro-batch of a step has, on each of so many data-parallel ranks; once the size
        is chosen."""
        tokens = self.data.micro_batch_tokens
        assert tokens != "auto", "chosen when a run opens"
        share = self.data.global_batch // data_size
        return packs_of_micro_batches(share, tokens // self.data.context_length, self.parallel.pipeline > 1)


def packs_of_micro_batches(packs: int, most: int, equal: bool) -> list[int]:
    """How many of `packs` go into each micro-batch: as few micro-batches as can be with up to `most`, one apart in size.
    `equal`: all of one size, as the stages of a pipeline have to agree on one; then there may be more of them."""
    count = -(-packs // most)
    if equal:
        count = next(more for more in range(count, packs + 1) if packs % more == 0)
    return [packs // count + (place < packs % count) for place in range(count)]
