"""Configuration of a reward model: its training, and scoring with it. Fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.epochs import EpochsConfig, PackedDataConfig
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.stage import StageConfig


@dataclass(frozen=True, kw_only=True)
class PreferenceDataConfig(PackedDataConfig):
    """Preferences and how they are packed."""

    train: Path = field(metadata=BY_CONTENT)
    """Preference file (JSONL, JSON, parquet): `chosen` and `rejected`, or ranked `completions`; or a public file as it is
    downloaded."""
    validation: Path | None = field(default=None, metadata=BY_CONTENT)
    """Preference file measured at the end of each epoch (accuracy by subset, calibration, length); never trained on."""
    tokenizer: Path = field(metadata=BY_CONTENT)
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = field(default=None, metadata=MAY_CHANGE)
    """File of the chat template in Jinja, in place of the tokenizer's own."""
    context_length: int = 8192
    """Length of a packed sequence (tokens). Both conversations of a pair lie in the same one."""
    global_batch: int = 64
    """Packed sequences per optimizer step, over all data-parallel ranks. Each holds as many pairs as fit."""
    pairs: Literal["best-worst", "all"] = "best-worst"
    """Of several ranked answers: the best against the worst, or each against every worse one."""
    margin: Literal["none", "column", "strength"] = "column"
    """What a pair's margin is: 0; the file's `margin` where it has one; or how strong the file says the preference is (a
    difference of scores or ranks)."""
    margin_scale: float = 1.0
    """What margins are multiplied with."""
    overlong: Literal["error", "drop"] = "error"
    """What becomes of pairs longer than the context length, or with a conversation beyond the model's positions."""
    bad_rows: Literal["error", "drop"] = "error"
    """What becomes of malformed rows."""
    control_tokens: Literal["error", "drop", "keep"] = "error"
    """What becomes of conversations whose texts spell a control token, such as the end of a text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.margin_scale >= 0, f"--data.margin-scale is {self.margin_scale}, below 0")


def _optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=2e-6, beta2=0.98, warmup_fraction=0.03)


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(EpochsConfig):
    """One run that makes a reward model of a language model, or goes on with one. Optimizer defaults are NeMo-RL's."""

    stage_name: ClassVar[str] = "reward"
    model_head: ClassVar[Literal["vocabulary", "score"]] = "score"

    data: PreferenceDataConfig
    epochs: int = field(default=1, metadata=MAY_CHANGE)
    """Passes over the data; each ends with a checkpoint. The learning-rate schedule runs over all of them."""
    centring: float = 0.01
    """Weight of the mean of (r_chosen + r_rejected)^2, which keeps rewards around zero (0: none)."""
    calibration_bins: int = field(default=10, metadata=MAY_CHANGE)
    """Bins of confidence for the expected calibration error of a validation."""
    optimizer: OptimizerConfig = field(default_factory=_optimizer)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.centring >= 0, f"--centring is {self.centring}, below 0")
        require(self.calibration_bins >= 1, f"--calibration-bins is {self.calibration_bins}, below 1")
        require(
            self.alarms.action != "rollback",
            "--alarms.action rollback: a reward model would meet the same pairs again, choose stop or warn",
        )
        require(self.alarms.reward_drop is None, "--alarms.reward-drop: for RL, whose rewards are to rise")
        self.alarms.check_no_rewards("a reward model's training")
        require(self.alarms.entropy_floor is None, "--alarms.entropy-floor: a reward model has no entropy")

    def extended(self, model: ModelConfig) -> ModelConfig:
        return replace(super().extended(model), head="score")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Columns, StageConfig):
    """Scoring a file with a reward model."""

    model_head: ClassVar[Literal["vocabulary", "score"]] = "score"
    weights_setting: ClassVar[str] = "checkpoint"
    tokenizer_setting: ClassVar[str] = "tokenizer"

    checkpoint: Path
    """Checkpoint of a reward model, a run's `latest`, or its Hugging Face folder."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = None
    """File of the chat template in Jinja, in place of the tokenizer's own."""
    input: Path
    """Preference file, RewardBench 1 or 2 as downloaded, or conversations (`messages`, or `prompt` and `response`)."""
    out: Path
    """Folder for result.json and rewards.jsonl."""
    kind: Literal["auto", "preferences", "reward-bench", "reward-bench-2", "conversations"] = "auto"
    """What the file is; auto: told by its first row."""
    pairs: Literal["best-worst", "all"] = "best-worst"
    """Of several ranked answers: the best against the worst, or each against every worse one."""
    bad_rows: Literal["error", "drop"] = "error"
    """What becomes of malformed rows."""
    control_tokens: Literal["error", "keep"] = "error"
    """What becomes of a file whose texts spell a control token: refused, or the tokens are taken as they are spelt."""
    overlong: Literal["error", "cut"] = "error"
    """What becomes of conversations beyond the model's positions: refused, or their beginning is cut off, and counted."""
    batch_tokens: int = 16_384
    """Tokens of a forward pass on each data-parallel rank; a longer conversation goes alone."""
    calibration_bins: int = 10
    """Bins of confidence for the expected calibration error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch_tokens >= 1, f"--batch-tokens is {self.batch_tokens}, below 1")
        require(self.calibration_bins >= 1, f"--calibration-bins is {self.calibration_bins}, below 1")
