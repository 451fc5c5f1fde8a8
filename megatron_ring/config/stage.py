"""What the configurations of all stages share: how a model is built, where its weights come from, where a run is recorded.
Imports no torch.

A stage that trains is a `TrainingConfig`, one that only samples an `InferenceConfig`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import MAY_CHANGE
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How every process builds its part of a model."""

    seed: int = 0
    """Seed of new weights, of the order of data and of sampling."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU. An optimizer's master weights are fp32."""
    layer_impl: Literal["native", "te"] = field(default="native", metadata=MAY_CHANGE)
    """Layers: torch's and our own kernels, or Transformer Engine's modules with the same parameters (CUDA, bf16)."""
    exact: bool = field(default=False, metadata=MAY_CHANGE)
    """Kernels that give a token the same bits whatever its batch: the sampler's log-probabilities and expert choices are
    those of the training forward pass (CUDA, bf16, TP=1)."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig, metadata=MAY_CHANGE)

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The shape that the stage gives to a model of this shape: the same, or what its settings add. Given twice it adds
        nothing more. Raises `UserError` where they cannot be added."""
        return model


@dataclass(frozen=True, kw_only=True)
class TrainedModelOptions(ModelOptions):
    """The same of a model that is trained."""

    recompute: Literal["none", "experts", "full"] = field(default="none", metadata=MAY_CHANGE)
    """What the backward pass computes again instead of keeping it: experts' first product, or whole layers."""
    router: RouterLossConfig = field(default_factory=RouterLossConfig)

    def extended(self, model: ModelConfig) -> ModelConfig:
        return replace(model, expert_bias=True) if self.router.bias_rate > 0 else model


@dataclass(frozen=True, kw_only=True)
class StageConfig(ModelOptions):
    """A stage: it has a model and a tokenizer."""

    stage_name: ClassVar[str] = ""
    """Name of its main, and of the stage in a run directory's config.yaml. Bases of several stages have none."""
    weights_setting: ClassVar[str] = "init_from"
    """Name of the setting that holds the checkpoint or Hugging Face folder; None there means new weights."""
    tokenizer_setting: ClassVar[str] = "data.tokenizer"
    """Dotted name of the setting that holds the tokenizer's folder."""
    model_head: ClassVar[Literal["vocabulary", "score"]] = "vocabulary"
    """The head that the stage's model has."""

    @property
    def weights_folder(self) -> Path | None:
        """Checkpoint, a run's `latest`, or Hugging Face folder; None: new weights."""
        folder: Path | None = getattr(self, self.weights_setting)
        return folder

    @property
    def tokenizer_folder(self) -> Path:
        folder: Path = operator.attrgetter(self.tokenizer_setting)(self)
        return folder

    @property
    def chat_template_file(self) -> Path | None:
        """File of a chat template, in place of the tokenizer's own; None: that one."""
        group, _, _ = self.tokenizer_setting.rpartition(".")
        file: Path | None = getattr(operator.attrgetter(group)(self) if group else self, "chat_template", None)
        return file

    @property
    def new_shape(self) -> str | None:
        """Name of the model's shape, where the stage can start without weights and it was given."""
        return None

    def resolved(self) -> Self:
        """The same with every default filled in that depends on other settings."""
        return self

    def check_head(self, model: ModelConfig) -> None:
        """Raise `UserError` where the model has another head than the stage works with."""
        said = {
            "score": "a reward model, which has no language head: give a language model",
            "vocabulary": "a language model, which has no score: give a reward model (megatron_ring.reward)",
        }
        flag = f"--{self.weights_setting.replace('_', '-')}"
        require(model.head == self.model_head, f"{flag} {self.weights_folder}: {said[model.head]}")

    def check_model(self, model: ModelConfig) -> None:
        """Raise `UserError` for settings that such a model has no use for."""

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot be split over so many data-parallel ranks."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainedModelOptions, StageConfig):
    """A stage that trains in a run directory."""

    run_dir: Path = field(metadata=MAY_CHANGE)
    """Run directory: metrics, checkpoints, sampled text. An existing one of the same configuration is continued."""
    keep_last: int | None = field(default=None, metadata=MAY_CHANGE)
    """Keep only so many newest checkpoints (default: all, as choosing one by its entropy needs)."""
    async_save: bool = field(default=True, metadata=MAY_CHANGE)
    """Write checkpoints while training goes on (host memory for one checkpoint); off: wait for each, which takes none. The
    last one of a run is waited for in any case."""
    save_optimizer: bool = field(default=True, metadata=MAY_CHANGE)
    """Keep the optimizer's state in checkpoints. Off: weights alone, a seventh of the size in bf16. Other runs can begin
    with them (--init-from); no run can continue from them."""
    grace_seconds: float = field(default=60.0, metadata=MAY_CHANGE)
    """After SIGTERM or SIGUSR1: how long the step under way and its checkpoint may take; then the run ends without them."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        require(self.keep_last is None or self.keep_last >= 1, f"--keep-last is {self.keep_last}, below 1")
        require(self.grace_seconds > 0, f"--grace-seconds is {self.grace_seconds:g}, not above 0")

    def check_rollback(self, action: str) -> None:
        """Raise `UserError` where alarms go back to checkpoints that no run can continue from."""
        kept = self.save_optimizer or action != "rollback"
        require(kept, "--alarms.action rollback goes on from a checkpoint: leave --no-save-optimizer out")

    def needs_first_weights(self, saved: Mapping[str, Any]) -> bool:
        """Whether a run that continues from a checkpoint with these `extra` values needs the weights it began with."""
        return False


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(StageConfig):
    """A stage that samples from existing weights."""

    weights_setting: ClassVar[str] = "checkpoint"
    tokenizer_setting: ClassVar[str] = "tokenizer"

    checkpoint: Path
    """Checkpoint, a run's `latest`, or Hugging Face folder."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = None
    """File of the chat template in Jinja, in place of the tokenizer's own."""
    instruction: str | None = None
    """Text added to every user message."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def check_model(self, model: ModelConfig) -> None:
        self.sampling.check_vocabulary(model.vocab_size)
        self.sampling.check_weights(self.exact, model.first_dense_layers < model.num_layers)
