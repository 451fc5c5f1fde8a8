"""Configuration of pretraining. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.micro_batches import check_micro_batch, sizes_of
from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.config.operations import AlarmConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RampConfig:
    """A batch that grows at the beginning of a run: from `start`, by `increment`, over `samples` sequences."""

    start: int | None = None
    """Sequences of the first steps (default: no ramp)."""
    increment: int | None = None
    """Sequences that a step gets more each time (default: `start`)."""
    samples: int | None = None
    """Sequences over which the batch grows to the global batch, in equal parts."""

    def __post_init__(self) -> None:
        for name in ("start", "increment", "samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--data.ramp.{name} is {value}, below 1")
            require(value is None or self.start is not None, f"--data.ramp.{name}: a ramp needs --data.ramp.start")
        require(self.start is None or self.samples is not None, "--data.ramp.start: a ramp needs --data.ramp.samples")


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Corpora and how sequences are cut from them."""

    cpu_tokens: ClassVar[int] = 0
    """Of a micro-batch that is chosen for a CPU, where it has one sequence in any case."""

    train: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Corpora, PREFIX or PREFIX:WEIGHT each, for PREFIX.bin and PREFIX.idx as megatron-core and tools/prepare_corpus.py
    write them; or one blend file (YAML or JSON). Without weights each sequence of each corpus is as likely. A continued run
    may have another blend: every corpus goes on where it stood."""
    validation: tuple[str, ...] = ()
    """Corpora that are measured and not trained on, PREFIX each (default: the second part of the split)."""
    tokenizer: Path = field(metadata=BY_CONTENT)
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file: that of the corpora."""
    split: tuple[float, float, float] = (99.0, 1.0, 0.0)
    """Shares of each corpus's documents, in order: trained, validated now and then, tested at the end of the run. With
    validation corpora the second share is 0."""
    sequence_length: int = 8192
    """Tokens of a sequence. Sequences are cut from shuffled documents that lie end to end."""
    global_batch: int = field(default=512, metadata=MAY_CHANGE)
    """Sequences per optimizer step, over all data-parallel ranks."""
    micro_batch_tokens: int | Literal["auto"] = field(default="auto", metadata=MAY_CHANGE)
    """Most tokens of a micro-batch: sequences of a rank go through the model together as far as they fit, one at least.
    auto: on a GPU as many as the memory plan allows, up to 65,536 tokens, with a pipeline no fewer than 4 micro-batches a
    stage; on a CPU one sequence. The router is balanced over the tokens of a micro-batch."""
    ramp: RampConfig = field(default_factory=RampConfig, metadata=MAY_CHANGE)
    reset_at_document: bool = False
    """Let no token attend to another document, and count positions from 0 in each. Off, as most published models were
    pretrained: a sequence crosses documents, and learns at their ends alone that they have no more to do with each other."""

    def __post_init__(self) -> None:
        require(bool(self.train) and all(self.train), "--data.train: give a corpus")
        require(all(self.validation), "--data.validation: an empty name")
        require(self.sequence_length >= 2, f"--data.sequence-length is {self.sequence_length}, below 2")
        require(self.global_batch >= 1, f"--data.global-batch is {self.global_batch}, below 1")
        check_micro_batch(self.micro_batch_tokens, self.sequence_length, "--data.sequence-length")
        shares = " ".join(f"{share:g}" for share in self.split)
        require(all(share >= 0 for share in self.split), f"--data.split {shares}: a share is below 0")
        require(self.split[0] > 0, f"--data.split {shares}: nothing is left to train on")
        start, increment = self.ramp.start, self.increment
        if start is None:
            return
        require(start <= self.global_batch, f"--data.ramp.start {start} is above --data.global-batch {self.global_batch}")
        rest = self.global_batch - start
        require(
            rest % increment == 0,
            f"--data.ramp: from {start} the batch does not come to {self.global_batch} by {increment} at a time",
        )

    @property
    def pack_tokens(self) -> int:
        """Of a sequence."""
        return self.sequence_length

    @property
    def least_batch(self) -> int:
        """Sequences of the smallest step."""
        return self.ramp.start or self.global_batch

    @property
    def increment(self) -> int:
        """Sequences that a step gets more at each step of the ramp."""
        return self.ramp.increment or self.ramp.start or 0

    def batch_at(self, samples: int) -> int:
        """Sequences of the step before which so many were read (as megatron-core's `--rampup-batch-size`)."""
        start, over = self.ramp.start, self.ramp.samples
        if start is None or over is None or samples >= over:
            return self.global_batch
        rises = (self.global_batch - start) // self.increment
        return start + samples * rises // over * self.increment


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """A longer context than the weights of --init-from have."""

    positions: int | None = None
    """Positions of the model from now on (tokens; default: those it has)."""
    rope_theta: float | None = None
    """Another base of the rotary embeddings, larger for a longer context."""
    yarn_factor: float | None = None
    """Stretch the rotary embeddings by YaRN (arXiv 2309.00071): new positions over those of the first training."""

    def __post_init__(self) -> None:
        require(self.positions is None or self.positions >= 1, f"--context.positions is {self.positions}, below 1")
        theta = self.rope_theta
        require(theta is None or theta > 0, f"--context.rope-theta is {theta}, not a positive number")
        factor = self.yarn_factor
        require(factor is None or factor > 1, f"--context.yarn-factor is {factor}: give more than 1")
        require(factor is None or self.positions is not None, "--context.yarn-factor needs --context.positions")

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The shape with these settings. Raises `UserError` where they do not make its context longer."""
        positions = self.positions or model.max_positions
        shorter = f"--context.positions {positions:,} is below the model's {model.max_positions:,}"
        require(positions >= model.max_positions, shorter)
        require(
            positions == model.max_positions or self.rope_theta is not None or self.yarn_factor is not None,
            f"--context.positions {positions:,}: the model was trained on {model.max_positions:,}; say how its rotary "
            f"embeddings go on, by --context.rope-theta (it has {model.rope_theta:g}) or --context.yarn-factor",
        )
        theta = self.rope_theta or model.rope_theta
        require(theta >= model.rope_theta, f"--context.rope-theta {theta:g} is below the model's {model.rope_theta:g}")
        return replace(model, max_positions=positions, rope_theta=theta, rope_scaling=self._scaling(model, positions))

    def _scaling(self, model: ModelConfig, positions: int) -> RopeScaling | None:
        before, factor = model.rope_scaling, self.yarn_factor
        if factor is None:
            return before
        kind = "" if before is None else before.kind
        require(kind in ("", "yarn"), f"--context.yarn-factor: the model's positions are stretched by {kind} already")
        original = model.max_positions if before is None else before.original_max_positions
        require(
            positions <= original * factor,
            f"--context.positions {positions:,} is beyond {original:,} x --context.yarn-factor {factor:g} = "
            f"{original * factor:,.0f}",
        )
        return replace(before or RopeScaling("yarn", factor, original), factor=factor)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainingConfig, DryRun):
    """One pretraining run, from random weights or going on from others."""

    stage_name: ClassVar[str] = "pretrain"

    data: CorpusConfig
    preset: str | None = None
    """Model shape by name (ring-lite, ring-tiny, …; default: that of the weights to start from)."""
    init_from: Path | None = field(default=None, metadata=BY_CONTENT)
    """Checkpoint or Hugging Face folder to start from; default: random weights of the preset."""
    init_state: Literal["weights", "all"] = "weights"
    """What a new run takes of the weights' folder. all: of a pretraining checkpoint also the optimizer's state and the place
    in the corpora; steps and the learning-rate schedule begin anew."""
    steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Optimizer steps of the whole run, over which the learning-rate schedule runs (default: as many as the epochs of the
    corpora have: one of each, or those of the blend file)."""
    save_every: int = field(default=1000, metadata=MAY_CHANGE)
    """Steps between checkpoints; the last step has one, too."""
    validation_every: int = field(default=1000, metadata=MAY_CHANGE)
    """Steps between validations; the last step has one, too."""
    validation_samples: int = field(default=64, metadata=MAY_CHANGE)
    """Sequences of each corpus that a validation or the test measures, at most: the same each time."""
    context: ContextConfig = field(default_factory=ContextConfig)
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rollback(self.alarms.action)
        for name in ("steps", "save_every", "validation_every", "validation_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")
        self.alarms.check_no_rewards("pretraining")
        require(self.alarms.reward_drop is None, "--alarms.reward-drop: pretraining has no rewards")
        require(
            self.init_state == "weights" or self.init_from is not None, "--init-state all: give --init-from a checkpoint"
        )

    @property
    def new_shape(self) -> str | None:
        return self.preset

    def extended(self, model: ModelConfig) -> ModelConfig:
        return self.context.extended(super().extended(model))

    def check_model(self, model: ModelConfig) -> None:
        """Raise `UserError` for sequences that the model has no positions for."""
        length = self.data.sequence_length
        require(
            length <= model.max_positions,
            f"--data.sequence-length {length:,} exceeds the model's {model.max_positions:,} positions: shorten it, or "
            f"give --context.positions",
        )

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot be split over so many data-parallel ranks."""
        data, tensor = self.data, self.parallel.tensor
        for name, batch in (
            ("global-batch", data.global_batch), ("ramp.start", data.ramp.start), ("ramp.increment", data.ramp.increment),
        ):  # fmt: skip
            said = f"--data.{name} {batch} does not split over {data_size} data-parallel rank(s)"
            require(batch is None or batch % data_size == 0, said)
        length = data.sequence_length
        require(length % tensor == 0, f"--data.sequence-length {length} does not split over TP={tensor} ranks")

    def sizes(self, sequences: int) -> list[int]:
        """How many of a rank's sequences go into each micro-batch, once the size is chosen."""
        return sizes_of(sequences, self.data.micro_batch_tokens, self.data.sequence_length, self.parallel.pipeline)

    def micro_batches(self, data_size: int) -> list[int]:
        """The same of a whole step, on each of so many data-parallel ranks."""
        return self.sizes(self.data.global_batch // data_size)

    def check_steps(self, steps: int) -> None:
        """Raise `UserError` where warm-up and decay do not fit so many steps."""
        warmup, decay = self.optimizer.warmup(steps), self.optimizer.decay(steps)
        require(warmup <= steps, f"--optimizer.warmup-steps {warmup:,} is above the run's {steps:,} steps")
        require(
            self.optimizer.schedule != "wsd" or decay <= steps,
            f"--optimizer.decay-steps {decay:,} is above the run's {steps:,} steps",
        )
