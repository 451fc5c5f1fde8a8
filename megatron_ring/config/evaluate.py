"""Configuration of an evaluation. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.judge import JudgeConfig
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

    prompts: Path | None = None
    """Prompt file (JSONL, JSON, parquet): `id, domain, prompt, answer` in each row; or a public file as it is downloaded."""
    suite: Literal["ring-lite", "ring-lite-2507"] | None = None
    """Benchmarks of a paper by its protocol, in place of --prompts; their files are in --benchmark-dir or --benchmark."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks and their public files or folders, NAME=PATH each, in place of --prompts (see docs/evaluation.md)."""
    benchmark_dir: Path | None = None
    """Folder of a suite's files: NAME.jsonl, NAME.parquet, NAME.csv, … or a folder NAME for each benchmark."""
    window: str | None = None
    """Days of LiveCodeBench's contests, FROM:TO, both included (default: the suite's; without a suite all)."""
    benchmark_samples: int | None = None
    """Responses to each problem of a benchmark (default: each benchmark's own number)."""
    token_budget: int | None = None
    """Response tokens that each benchmark may cost, in place of a fixed number of responses: those of all its problems
    together, thinking included, prompts not (default: no budget). The score is then the majority's over equal answers.
    Benchmarks whose answers cannot be equal (code, judged sets, IFEval) keep their number of responses."""
    final_token_budget: int | None = None
    """What --token-budget grows to, in step with the share of the problems solved so far: the budget of a model that solves
    them all (default: it does not grow)."""
    budget_rule: Literal["uniform", "adaptive", "both"] = "adaptive"
    """How --token-budget is spent: equally on all problems; or a problem is left once its majority is certain enough, and
    the others get its tokens; or both, each with the whole budget, over the same responses where they want the same."""
    budget_confidence: float = 0.95
    """Certainty above which the adaptive rule leaves a problem, above 0.5 (Beta criterion of arXiv 2305.11860)."""
    budget_samples: int = 40
    """Responses to one problem under --token-budget, at most."""
    out: Path
    """Folder for result.json and samples.jsonl; of benchmarks for result.json, report.html and the responses."""
    restart: bool = False
    """Remove the responses that an evaluation of --prompts has left in --out without coming to its end."""
    samples_per_problem: int = 1
    """Responses drawn for each problem of --prompts; pass@1 is their mean."""
    sampling: SamplingConfig = field(default_factory=_evaluation_sampling)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = [
            name
            for name, given in (("--prompts", self.prompts), ("--suite or --benchmark", self.suite or self.benchmark))
            if given
        ]
        require(bool(asked), "--prompts is missing: give a prompt file, or --suite or --benchmark")
        require(len(asked) == 1, "--prompts is given with --suite or --benchmark: give one of the two")
        require(self.benchmark_dir is None or self.suite is not None, "--benchmark-dir holds a suite's files: give --suite")
        require(
            self.benchmark_samples is None or self.benchmark_samples >= 1,
            f"--benchmark-samples is {self.benchmark_samples}, below 1",
        )
        require(
            self.prompts is None or not self.judge.given,
            "--judge judges benchmarks, and --prompts are scored by verifiers: leave it out, or give --benchmark; the "
            "domain `judge` has --rewards.judge",
        )
        require(
            not self.restart or self.prompts is not None, "--restart is of --prompts: of benchmarks choose another --out"
        )
        self._check_budget()
        require(self.samples_per_problem >= 1, f"--samples-per-problem is {self.samples_per_problem}, below 1")

    def _check_budget(self) -> None:
        first, last = self.token_budget, self.final_token_budget
        require(first is None or first >= 1, f"--token-budget is {first}, below 1")
        require(first is None or self.prompts is None, "--token-budget is of benchmarks: give --benchmark or --suite")
        require(
            first is None or self.benchmark_samples is None,
            "--benchmark-samples is given with --token-budget, which decides the number: leave it out"
            " (--budget-samples is the most of a problem)",
        )
        require(last is None or first is not None, "--final-token-budget is where --token-budget grows to: give both")
        require(
            last is None or first is None or last >= first,
            f"--final-token-budget is {last}, below --token-budget {first}: the budget does not shrink",
        )
        require(0.5 <= self.budget_confidence < 1, f"--budget-confidence is {self.budget_confidence}: give 0.5 to below 1")
        require(self.budget_samples >= 1, f"--budget-samples is {self.budget_samples}, below 1")
