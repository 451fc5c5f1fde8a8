"""Configuration of supervised fine-tuning. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.plan import DryRun


@dataclass(frozen=True, kw_only=True)
class SFTDataConfig:
    """Conversations and how they are packed."""

    train: Path
    """SFT file (JSONL or parquet): `messages`, or `prompt` and `response`, per line."""
    validation: Path | None = None
    """SFT file measured at the end of each epoch (loss and entropy); never trained on."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, chat template included."""
    context_length: int = 32_768
    """Length of a packed sequence (tokens)."""
    global_batch: int = 256
    """Packed sequences per optimizer step, over all data-parallel ranks."""
    overlong: Literal["error", "drop"] = "error"
    """What becomes of conversations longer than the context length."""

    def __post_init__(self) -> None:
        require(self.context_length >= 2, f"--data.context-length is {self.context_length}, below 2")
        require(self.global_batch >= 1, f"--data.global-batch is {self.global_batch}, below 1")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(DryRun):
    """One SFT run. Defaults are the Ring-lite report's."""

    run_dir: Path
    """Run directory: metrics, checkpoints. An existing one of the same configuration is continued."""
    data: SFTDataConfig
    preset: str | None = None
    """Model shape by name (ring-lite, ring-tiny, …); default: that of --init-from."""
    init_from: Path | None = None
    """Checkpoint or Hugging Face folder to start from; default: random weights of the preset."""
    epochs: int = 3
    """Passes over the data; each ends with a checkpoint."""
    max_steps: int | None = None
    """Stop after this many optimizer steps (default: all of them); the learning-rate schedule is not shortened."""
    save_every: int | None = None
    """Also save every so many steps (default: at the end of each epoch only)."""
    keep_last: int | None = None
    """Keep only so many newest checkpoints (default: all, as choosing one by entropy needs)."""
    async_save: bool = True
    """Write checkpoints while training goes on (host memory for one checkpoint); off: wait for each."""
    seed: int = 0
    """Seed of weights and data order."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU. The optimizer's master weights are fp32."""
    recompute: Literal["none", "experts", "full"] = "none"
    """What the backward pass computes again instead of keeping it: experts' first product, or whole layers."""
    layer_impl: Literal["native", "te"] = "native"
    """Layers: torch's and our own kernels, or Transformer Engine's modules with the same parameters (CUDA, bf16)."""
    exact: bool = False
    """Kernels that give a token the same bits whatever its batch: the sampler's log-probabilities and expert choices are
    those of the training forward pass (CUDA, bf16, TP=1)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    router: RouterLossConfig = field(default_factory=RouterLossConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs is {self.epochs}, below 1")
        for name in ("max_steps", "save_every", "keep_last"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot be split over so many data-parallel ranks."""
        batch, context, tensor = self.data.global_batch, self.data.context_length, self.parallel.tensor
        require(
            batch % data_size == 0,
            f"--data.global-batch {batch} does not split over {data_size} data-parallel rank(s)",
        )
        require(context % tensor == 0, f"--data.context-length {context} does not split over TP={tensor} ranks")
