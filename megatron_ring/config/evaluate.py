"""Configuration of an evaluation. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig


def _evaluation_sampling() -> SamplingConfig:
    return SamplingConfig(top_p=0.95, max_new_tokens=32_768)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DryRun):
    """One evaluation. Sampling defaults are the Ring-lite report's."""

    checkpoint: Path
    """Checkpoint or Hugging Face folder."""
    prompts: Path
    """Prompt file (JSONL or parquet): `id, domain, prompt, answer` per line."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, chat template included."""
    out: Path
    """Folder for result.json and samples.jsonl."""
    instruction: str | None = None
    """Text added to every user message."""
    samples_per_problem: int = 1
    """Responses drawn for each problem; pass@1 is their mean."""
    seed: int = 0
    """Seed of sampling."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU."""
    layer_impl: Literal["native", "te"] = "native"
    """Layers: torch's and our own kernels, or Transformer Engine's modules with the same parameters (CUDA, bf16)."""
    exact: bool = False
    """Kernels that give a token the same bits whatever its batch: the sampler's log-probabilities and expert choices are
    those of the training forward pass (CUDA, bf16, TP=1)."""
    sampling: SamplingConfig = field(default_factory=_evaluation_sampling)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        require(self.samples_per_problem >= 1, f"--samples-per-problem is {self.samples_per_problem}, below 1")
