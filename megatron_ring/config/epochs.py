"""What stages that train in epochs over a file have in common. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.micro_batches import check_micro_batch, sizes_of
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class PackedDataConfig(Columns):
    """A file that is packed, and how many of its packs a step takes."""

    cpu_tokens: ClassVar[int] = 512
    """Of a micro-batch that is chosen for a CPU: more of them are hardly faster, and fewer are half as fast."""

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
        check_micro_batch(self.micro_batch_tokens, self.context_length, "--data.context-length")

    @property
    def pack_tokens(self) -> int:
        """Of a packed sequence."""
        return self.context_length

    @property
    def least_batch(self) -> int:
        """Packed sequences of the smallest step."""
        return self.global_batch


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
        data = self.data
        return sizes_of(data.global_batch // data_size, data.micro_batch_tokens, data.context_length, self.parallel.pipeline)
