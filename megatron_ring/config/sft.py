"""Configuration of supervised fine-tuning. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.epochs import EpochsConfig, PackedDataConfig
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE


@dataclass(frozen=True, kw_only=True)
class SFTDataConfig(PackedDataConfig):
    """Conversations and how they are packed."""

    train: Path = field(metadata=BY_CONTENT)
    """SFT file (JSONL, JSON, parquet): `messages`, or `prompt` and `response`, in each row; or a public file as it is
    downloaded."""
    validation: Path | None = field(default=None, metadata=BY_CONTENT)
    """SFT file measured at the end of each epoch (loss and entropy); never trained on."""
    tokenizer: Path = field(metadata=BY_CONTENT)
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = field(default=None, metadata=MAY_CHANGE)
    """File of the chat template in Jinja, in place of the tokenizer's own."""
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
    cache: Path | None = field(default=None, metadata=MAY_CHANGE)
    """Folder for the tokenised conversations, which all runs over a file share (default: `.tokenized` beside the file, or,
    where that cannot be written, in the run directory)."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig(EpochsConfig):
    """One SFT run. Defaults are the Ring-lite report's."""

    stage_name: ClassVar[str] = "sft"

    data: SFTDataConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.alarms.action != "rollback",
            "--alarms.action rollback: SFT would meet the same conversations again, choose stop or warn",
        )
        require(self.alarms.action != "skip", "--alarms.action skip: for pretraining only, choose stop or warn")
        self.alarms.check_no_rewards("SFT")
        require(self.alarms.reward_drop is None, "--alarms.reward-drop: SFT has no rewards")
