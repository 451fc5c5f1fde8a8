"""Configuration of an RL stage: what its main can be told. Its fields are the flags. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from megatron_ring.config.checks import require
from megatron_ring.config.data import Columns
from megatron_ring.config.metadata import BY_CONTENT, MAY_CHANGE
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.objective import WITH_BUDGET, BudgetConfig, CorrectionConfig, ObjectiveConfig, ReferenceConfig
from megatron_ring.config.operations import AlarmConfig, HeldOutConfig, WandbConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.plan import DryRun
from megatron_ring.config.rewards import RewardConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.shaping import ShapingConfig
from megatron_ring.config.stage import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RLDataConfig(Columns):
    """Prompts and how training packs their responses."""

    prompts: Path = field(metadata=BY_CONTENT)
    """Prompt file (JSONL or parquet: `id, domain, prompt, answer` per line), or stage file (YAML or JSON) that names several
    with their weights, stage by stage (see docs/data.md)."""
    tokenizer: Path = field(metadata=BY_CONTENT)
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = field(default=None, metadata=MAY_CHANGE)
    """File of the chat template in Jinja, in place of the tokenizer's own."""
    instruction: str | None = None
    """Text added to every user message, such as the report's request for a boxed answer."""
    min_solve_rate: float | None = None
    """Leave out prompts whose `metadata.solve_rate` is below this (default: none)."""
    max_solve_rate: float | None = None
    """Leave out prompts whose `metadata.solve_rate` is above this (default: none)."""
    drop_after: int | None = None
    """Drop a prompt once so many of its groups in a row had all rewards equal: all right or all wrong (default: never)."""
    curriculum: Literal["none", "solve-rate"] = "none"
    """solve-rate: in each epoch take a prompt with probability 4 r (1 - r), r its running solve rate."""
    curriculum_floor: float = 0.1
    """Least probability of a prompt under a curriculum."""
    micro_batch_tokens: int | Literal["auto"] = field(default="auto", metadata=MAY_CHANGE)
    """Longest packed training micro-batch (tokens); at least the longest prompt and response together. auto: as long as the
    memory plan allows, up to 65,536 on a GPU and 8,192 on a CPU. The router is balanced over the tokens of a micro-batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_solve_rate, self.max_solve_rate
        for name, rate in (("min", low), ("max", high)):
            require(rate is None or 0 <= rate <= 1, f"--data.{name}-solve-rate is {rate}, outside 0..1")
        if low is not None and high is not None:
            require(low <= high, f"--data.min-solve-rate {low} is above --data.max-solve-rate {high}")
        require(self.drop_after is None or self.drop_after >= 1, f"--data.drop-after is {self.drop_after}, below 1")
        require(0.01 <= self.curriculum_floor <= 1, f"--data.curriculum-floor is {self.curriculum_floor}, outside 0.01..1")
        tokens = self.micro_batch_tokens
        require(tokens == "auto" or tokens >= 1, f"--data.micro-batch-tokens is {tokens}, below 1")

    @property
    def capacity(self) -> int:
        """`micro_batch_tokens`, once it is chosen."""
        assert self.micro_batch_tokens != "auto", "chosen when a run opens"
        return self.micro_batch_tokens


def _rl_sampling() -> SamplingConfig:
    return SamplingConfig(max_new_tokens=22_528)  # of the report's 24,576, 2,048 are for the prompt


def _rl_optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=3e-6, schedule="constant", warmup_fraction=0.01)


@dataclass(frozen=True, kw_only=True)
class RLConfig(TrainingConfig, DryRun):
    """One RL stage. Defaults are the Ring-lite report's."""

    stage_name: ClassVar[str] = "rl"

    init_from: Path = field(metadata=BY_CONTENT)
    """Checkpoint or Hugging Face folder to start from."""
    data: RLDataConfig
    steps: int = field(default=1000, metadata=MAY_CHANGE)
    """Steps of the whole run. A step samples, scores, selects and updates; schedules and checkpoints count in steps."""
    updates_per_step: int = 1
    """Optimizer updates of a step, on equal token budgets that together are what the step trains; the old log-probs are
    those before the first. Without a token budget each update has whole responses."""
    prompts_per_step: int = 512
    """Prompts sampled in a round (L)."""
    samples_per_prompt: int = 16
    """Responses to each prompt (K); their rewards form one group."""
    save_every: int = field(default=20, metadata=MAY_CHANGE)
    """Steps between checkpoints."""
    offload_optimizer: bool = field(default=False, metadata=MAY_CHANGE)
    """While responses are sampled, keep the optimizer's state in host memory and give up the gradient buffers: the KV cache
    gets that much more. Changes no result."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    correction: CorrectionConfig = field(default_factory=CorrectionConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    sampling: SamplingConfig = field(default_factory=_rl_sampling)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    optimizer: OptimizerConfig = field(default_factory=_rl_optimizer)
    alarms: AlarmConfig = field(default_factory=AlarmConfig, metadata=MAY_CHANGE)
    evaluation: HeldOutConfig = field(default_factory=HeldOutConfig, metadata=MAY_CHANGE)
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig, metadata=MAY_CHANGE)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "updates_per_step", "prompts_per_step", "samples_per_prompt", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")
        require(self.samples_per_prompt >= 2, "--samples-per-prompt is 1: a group needs at least 2 responses to compare")
        require(self.sampling.temperature > 0, "--sampling.temperature is 0: RL needs samples, not the greedy response")
        require(
            self.sampling.whole_distribution,
            "--sampling.top-p, top-k and min-p: RL trains on the whole distribution, leave them at 1, 0 and 0",
        )
        self.check_rollback(self.alarms.action)
        require(self.alarms.action != "skip", "--alarms.action skip: for pretraining only, choose stop, rollback or warn")
        require(self.alarms.loss_rise is None, "--alarms.loss-rise: RL has no loss of this kind")
        objective, place = self.objective, self.reference.resolved(self.objective.kl_beta).place
        require(
            not self.budget.is_set or objective.has_budget,
            f"--budget: a token budget belongs to {WITH_BUDGET}, --objective.name is {objective.name}",
        )
        require(
            self.correction.name == "none" or objective.old_logprobs == "recomputed",
            f"--correction.name {self.correction.name} compares the sampler with the trainer: it needs "
            f"--objective.old-logprobs recomputed",
        )
        require(
            place != "none" or objective.kl_beta == 0,
            f"--reference.place is none, but --objective.kl-beta {objective.kl_beta} needs a reference",
        )
        require(
            place != "none" or self.reference.refresh_every is None,
            "--reference.refresh-every: there is no reference (see --reference.place and --objective.kl-beta)",
        )

    def resolved(self) -> Self:
        """The same with every default filled in that depends on other settings."""
        objective = self.objective.resolved(self.sampling.max_new_tokens)
        reference = self.reference.resolved(objective.kl_beta)
        return replace(self, objective=objective, correction=self.correction.resolved(), reference=reference)

    def needs_first_weights(self, saved: Mapping[str, Any]) -> bool:
        """The reference of a KL term has them until it is refreshed."""
        reference = self.resolved().reference.place != "none"
        return reference and not saved.get("policy", {}).get("reference")

    def check_model(self, model: ModelConfig) -> None:
        """Raise `UserError` for settings that such a model has no use for."""
        self.sampling.check_vocabulary(model.vocab_size)
        self.sampling.check_weights(self.exact, model.first_dense_layers < model.num_layers)
        has_router = model.first_dense_layers < model.num_layers and model.num_experts > 1
        require(
            has_router or self.correction.routes == "ignore",
            f"--correction.routes {self.correction.routes}: {self.init_from} has no mixture of experts",
        )
        require(
            not (self.exact and self.correction.routes == "replay"),
            "--correction.routes replay: weights of replayed experts are summed in another order than --exact's, take one",
        )

    def check(self, data_size: int) -> None:
        """Raise `UserError` when a step cannot work on so many data-parallel ranks."""
        prompts, samples, longest = self.prompts_per_step, self.samples_per_prompt, self.sampling.max_new_tokens
        require(
            prompts >= data_size,
            f"--prompts-per-step is {prompts}, below the number of data-parallel ranks ({data_size}): some would have "
            f"nothing to sample",
        )
        tokens, tensor = self.data.micro_batch_tokens, self.parallel.tensor
        if tokens != "auto":
            require(tokens % tensor == 0, f"--data.micro-batch-tokens {tokens} does not split over TP={tensor} ranks")
            require(
                longest < tokens,
                f"--data.micro-batch-tokens {tokens:,} holds no prompt beside --sampling.max-new-tokens {longest:,}",
            )
        updates = self.updates_per_step
        if not self.objective.has_budget:
            require(
                updates <= prompts * samples,
                f"--updates-per-step is {updates:,}: a step of {prompts} prompts x {samples} samples has fewer responses",
            )
            return
        budgets, rounds = self.budget.resolve(data_size), self.budget.max_rounds
        for budget in budgets:
            require(
                budget % data_size == 0,
                f"--budget.tokens: Phi = {budget:,} does not divide over {data_size} data-parallel ranks; "
                f"{max(1, budget // data_size) * data_size:,} would",
            )
        require(
            updates <= min(budgets),
            f"--updates-per-step is {updates:,}: Phi = {min(budgets):,} (--budget.tokens) has less than a token for each",
        )
        most = rounds * prompts * samples * longest
        require(
            max(budgets) <= most,
            f"--budget.tokens: Phi = {max(budgets):,} cannot be reached: {rounds} round(s) of {prompts} prompts x {samples} "
            f"samples of up to {longest:,} tokens hold {most:,}",
        )
        require(
            self.budget.order != "by-group" or min(budgets) >= prompts,
            f"--budget.order by-group: Phi = {min(budgets):,} is less than one token for each of {prompts} prompts",
        )
