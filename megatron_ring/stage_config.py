"""Configurations of the stages but RL: what each main can be told. Their fields are its flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_ring.config import OptimizerConfig, ParallelConfig, RouterLossConfig, SamplingConfig, require
from megatron_ring.plan_config import DryRun


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


@dataclass(frozen=True)
class RewardConfig:
    """Verifiers. Each data-parallel replica scores what it samples, beside the sampling, on its first rank's machine."""

    workers: int = 4
    """Verifier processes of each data-parallel replica, for each kind it needs (answers, instructions, code)."""
    time_limit: float = 5.0
    """Wall-clock limit per response (seconds); past it the reward is 0. Code has limits for each test instead."""
    compositions: Path | None = None
    """JSON file of rewards made of several verifiers, by the domain of the prompt files (see docs/rewards.md)."""
    unsafe_code: bool = False
    """Run solutions without a sandbox where bubblewrap does not work. For trusted code only: it runs as you do."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--rewards.workers is {self.workers}, below 1")
        require(0 < self.time_limit < float("inf"), f"--rewards.time-limit is {self.time_limit}, not a number of seconds")


def _evaluation_sampling() -> SamplingConfig:
    return SamplingConfig(top_p=0.95, max_new_tokens=32_768)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Text from a model."""

    checkpoint: Path
    """Checkpoint or Hugging Face folder."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, chat template included."""
    prompts: Path | None = None
    """JSONL or parquet file with a `prompt` (text or messages) in each row, `id` optional (default: standard input, a line
    each)."""
    out: Path | None = None
    """JSONL file for the responses, in order: to a file of prompts written at the end, to typed ones as they come (default:
    none)."""
    stream: Literal["auto", "tokens", "responses"] = "auto"
    """What is shown as it comes; tokens takes decoding steps one by one, which is slower on a GPU. auto: tokens, but for a
    file of prompts with --out responses."""
    samples: int = 1
    """Responses to each prompt."""
    raw: bool = False
    """Continue each prompt as plain text, without the chat template."""
    instruction: str | None = None
    """Text added to every user message."""
    seed: int = 0
    """Seed of sampling."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU."""
    layer_impl: Literal["native", "te"] = "native"
    """Layers: torch's and our own kernels, or Transformer Engine's modules with the same parameters (CUDA, bf16)."""
    exact: bool = False
    """Kernels that give a token the same bits whatever its batch: the sampler's log-probabilities and expert choices are
    those of the training forward pass (CUDA, bf16, TP=1)."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"--samples is {self.samples}, below 1")
        require(not (self.raw and self.instruction), "--instruction goes into user messages, and --raw has none: drop one")

    @property
    def streams(self) -> bool:
        """Whether tokens are shown one by one."""
        return self.stream == "tokens" or (self.stream == "auto" and (self.prompts is None or self.out is None))


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
