"""Configuration of supervised fine-tuning. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class SFTDataConfig(Columns):
    """Conversations and how they are packed."""

    train: Path = field(metadata=BY_CONTENT)
    """SFT file (JSONL, JSON, parquet): `messages`, or `prompt` and `response`, in each row; or a public file as it is
    downloaded."""
    validation: Path | None = field(default=None, metadata=BY_CONTENT)
    """SFT file measured at the end of each epoch (loss and entropy); never trained on."""
    tokenizer: Path = field(metadata=BY_CONTENT)
    """Tokenizer directory in Hugging Face layout, chat template included."""
    context_length: int = 32_768
    """Length of a packed sequence (tokens)."""
    global_batch: int = 256
    """Packed sequences per optimizer step, over all data-parallel ranks."""
    overlong: Literal["error", "drop"] = "error"
    """What becomes of conversations longer than the context length or the model's positions."""
    train_on: Literal["all", "last", "marked"] = "all"
    """Which of the assistant's messages carry loss: all but those that the file marks not to be trained; of these the last
    alone; or only those that it marks to be trained (`weight` 0 or 1, `train` true or false)."""
    control_tokens: Literal["error", "drop", "keep"] = "error"
    """What becomes of conversations whose texts spell a control token, such as the end of a text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.context_length >= 2, f"--data.context-length is {self.context_length}, below 2")
        require(self.global_batch >= 1, f"--data.global-batch is {self.global_batch}, below 1")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig, DryRun):
    """One SFT run. Defaults are the Ring-lite report's."""

    stage_name: ClassVar[str] = "sft"

    data: SFTDataConfig
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
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.epochs >= 1, f"--epochs is {self.epochs}, below 1")
        for name in ("max_steps", "save_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")

        require(
            self.alarms.action != "rollback",
            "--alarms.action rollback: SFT would meet the same conversations again, choose stop or warn",
        )
        require(self.alarms.action != "skip", "--alarms.action skip: for pretraining only, choose stop or warn")
        require(self.alarms.reward_drop is None, "--alarms.reward-drop: SFT has no rewards")

    @property
    def new_shape(self) -> str | None:
        return self.preset

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot be split over so many data-parallel ranks."""
        batch, context, tensor = self.data.global_batch, self.data.context_length, self.parallel.tensor
        require(
            batch % data_size == 0,
            f"--data.global-batch {batch} does not split over {data_size} data-parallel rank(s)",
        )
        require(context % tensor == 0, f"--data.context-length {context} does not split over TP={tensor} ranks")
