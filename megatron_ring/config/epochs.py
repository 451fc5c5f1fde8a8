"""What stages that train in epochs over a file have in common. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.stage import TrainingConfig


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

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, f"--epochs is {self.epochs}, below 1")
        for name in ("max_steps", "save_every", "save_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")

    @property
    def new_shape(self) -> str | None:
        return self.preset


def check_batch(batch: int, context: int, data: int, tensor: int) -> None:
    """Raise `UserError` when so many packed sequences of so many tokens cannot be split over the ranks."""
    require(batch % data == 0, f"--data.global-batch {batch} does not split over {data} data-parallel rank(s)")
    require(context % tensor == 0, f"--data.context-length {context} does not split over TP={tensor} ranks")
