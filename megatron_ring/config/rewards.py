"""Configuration of the verifiers and of the models that score. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_ring.config.checks import require
from megatron_ring.config.judge import RewardJudgeConfig
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE


@dataclass(frozen=True)
class RewardConfig:
    """Verifiers. Each data-parallel replica scores what it samples, beside the sampling, on its first rank's machine."""

    workers: int = field(default=4, metadata=MAY_CHANGE)
    """Verifier processes of each data-parallel replica, for each kind it needs (answers, instructions, code)."""
    time_limit: float = 5.0
    """Wall-clock limit per response (seconds); past it the reward is 0. Code has limits for each test instead."""
    compositions: Path | None = None
    """JSON file of rewards made of several verifiers, by the domain of the prompt files (see docs/rewards.md)."""
    reward_model: Path | None = field(default=None, metadata=BY_CONTENT)
    """Checkpoint or Hugging Face folder of the reward model that scores the domain `reward-model`."""
    reward_model_tokens: int = field(default=16_384, metadata=MAY_CHANGE)
    """Tokens of a forward pass of the reward model on each data-parallel replica."""
    judge: RewardJudgeConfig = field(default_factory=RewardJudgeConfig)
    offload: bool = field(default=False, metadata=MAY_CHANGE)
    """Keep the weights of the reward model and of the judging checkpoint in host memory while they do not score. Changes no
    result."""
    unsafe_code: bool = False
    """Run solutions without a sandbox where bubblewrap does not work. For trusted code only: it runs as you do."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--rewards.workers is {self.workers}, below 1")
        require(self.reward_model_tokens >= 1, f"--rewards.reward-model-tokens is {self.reward_model_tokens}, below 1")
        pointer = self.reward_model is not None and self.reward_model.name == "latest"
        require(not pointer, "--rewards.reward-model names `latest`: name the checkpoint itself, a run keeps to one")
        require(0 < self.time_limit < float("inf"), f"--rewards.time-limit is {self.time_limit}, not a number of seconds")
