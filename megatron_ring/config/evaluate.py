"""Configuration of an evaluation. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.plan import DryRun
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.stage import InferenceConfig


def _evaluation_sampling() -> SamplingConfig:
    return SamplingConfig(top_p=0.95, max_new_tokens=32_768)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Columns, InferenceConfig, DryRun):
    """One evaluation. Sampling defaults are the Ring-lite report's."""

    stage_name: ClassVar[str] = "evaluate"

    prompts: Path
    """Prompt file (JSONL, JSON, parquet): `id, domain, prompt, answer` in each row; or a public file as it is downloaded."""
    out: Path
    """Folder for result.json and samples.jsonl."""
    samples_per_problem: int = 1
    """Responses drawn for each problem; pass@1 is their mean."""
    sampling: SamplingConfig = field(default_factory=_evaluation_sampling)
    rewards: RewardConfig = field(default_factory=RewardConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.samples_per_problem >= 1, f"--samples-per-problem is {self.samples_per_problem}, below 1")
