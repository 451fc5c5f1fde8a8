"""Reinforcement with C3PO: sample on the live weights, score, select exactly the token budget, train.

    torchrun --nproc-per-node 8 -m megatron_ring.rl --run runs/rl --init-from CKPT --data.prompts FILE …

The same command continues a run that was stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_ring.cli import parse
from megatron_ring.config import OptimizerConfig, ParallelConfig, RouterLossConfig, SamplingConfig, require
from megatron_ring.errors import UserError, run_main


@dataclass(frozen=True, kw_only=True)
class RLDataConfig:
    """Prompts and how training packs their responses."""

    prompts: Path
    """Prompt file (JSONL or parquet): `id, domain, prompt, answer` per line."""
    tokenizer: Path
    """Tokenizer directory."""
    instruction: str | None = None
    """Text added to every user message, such as the report's request for a boxed answer."""
    micro_batch_tokens: int = 24_576
    """Length of a packed training micro-batch (tokens); at least the longest prompt and response together."""


@dataclass(frozen=True)
class BudgetConfig:
    """The token budget of a step: exactly so many response tokens carry gradient."""

    tokens: int = 409_600
    """Phi (response tokens)."""
    scope: Literal["global", "rank"] = "rank"
    """Whether Phi counts for the whole step, or per data-parallel rank and is multiplied by their number."""
    max_rounds: int = 4
    """Rounds of `prompts_per_step` prompts that a step may sample to reach Phi before the run stops and says why."""

    def __post_init__(self) -> None:
        require(self.tokens >= 1, f"--budget.tokens is {self.tokens}, below 1")
        require(self.max_rounds >= 1, f"--budget.max-rounds is {self.max_rounds}, below 1")

    def resolve(self, data_size: int) -> int:
        """Phi of the whole step (tokens)."""
        return self.tokens * data_size if self.scope == "rank" else self.tokens


@dataclass(frozen=True)
class ObjectiveConfig:
    """The policy loss."""

    name: Literal["c3po", "grpo"] = "c3po"
    """c3po: mean over the token budget; grpo: mean over responses of the mean over their tokens, no budget."""
    clip: float = 0.2
    """Epsilon of the clipped probability ratio."""
    kl_beta: float = 1e-3
    """Weight of the KL term to the policy that RL started from (0: no reference policy is held)."""
    alpha_entropy: float = 5e-4
    """Weight of the entropy bonus."""

    def __post_init__(self) -> None:
        require(0 < self.clip < 1, f"--objective.clip is {self.clip}, outside (0, 1)")
        require(self.kl_beta >= 0, f"--objective.kl-beta is {self.kl_beta}, below 0")


@dataclass(frozen=True)
class RewardConfig:
    """Verifier processes."""

    workers: int = 4
    """Worker processes."""
    time_limit: float = 5.0
    """Wall-clock limit per response (seconds); past it the reward is 0."""


def _rl_optimizer() -> OptimizerConfig:
    return OptimizerConfig(lr=3e-6, schedule="constant", warmup_fraction=0.01)


@dataclass(frozen=True, kw_only=True)
class RLConfig:
    """One RL stage. Defaults are the Ring-lite report's."""

    run: Path
    """Run directory: metrics, rollouts, checkpoints. An existing one of the same configuration is continued."""
    init_from: Path
    """Checkpoint or Hugging Face folder to start from."""
    data: RLDataConfig
    steps: int = 1000
    """Optimizer steps."""
    prompts_per_step: int = 512
    """Prompts sampled in a round (L)."""
    samples_per_prompt: int = 16
    """Responses to each prompt (K); their rewards form one group."""
    save_every: int = 20
    """Steps between checkpoints."""
    keep_last: int | None = None
    """Keep only so many newest checkpoints (default: all)."""
    seed: int = 0
    """Seed of the prompt order and of sampling."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Parameters' dtype; auto: bf16 on CUDA, fp32 on the CPU."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    optimizer: OptimizerConfig = field(default_factory=_rl_optimizer)
    router: RouterLossConfig = field(default_factory=RouterLossConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step", "samples_per_prompt", "save_every"):
            value = getattr(self, name)
            require(value >= 1, f"--{name.replace('_', '-')} is {value}, below 1")
        require(self.samples_per_prompt >= 2, "--samples-per-prompt is 1: a group needs at least 2 responses to compare")
        require(self.sampling.temperature > 0, "--sampling.temperature is 0: RL needs samples, not the greedy response")
        require(self.sampling.top_p == 1, "--sampling.top-p: RL trains on the whole distribution, it must be 1")


MAY_DIFFER = frozenset({"run", "steps", "save_every", "keep_last", "rewards.workers", "sampling.max_batch"})


def main(config: RLConfig) -> None:
    from megatron_ring.training.stage import resolve_shape

    shape = resolve_shape(None, config.init_from)

    from megatron_ring.checkpoint.training_state import latest_checkpoint, load_checkpoint, save_checkpoint
    from megatron_ring.data.files import read_prompts
    from megatron_ring.data.prompts import PromptStream
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.rewards.pool import RewardPool
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.training.policy_loss import PolicyLoss
    from megatron_ring.training.progress import Progress
    from megatron_ring.training.reference import ReferencePolicy
    from megatron_ring.training.rl_step import collect_step, pack_step, rl_metrics, rollout_rows
    from megatron_ring.training.run_dir import RunDirectory
    from megatron_ring.training.stage import set_first_weights, start_stage
    from megatron_ring.training.trainer import Trainer

    tokenizer = RingTokenizer.load(config.data.tokenizer)
    require(tokenizer.vocab_size <= shape.vocab_size,
            f"--data.tokenizer: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}")
    stream = PromptStream(read_prompts(config.data.prompts), config.seed)

    stage = start_stage(shape, config.parallel, config.router, config.seed, config.precision)
    context = stage.context
    run = RunDirectory(config.run, writes=context.is_main)
    run.open("rl", config, MAY_DIFFER)
    set_first_weights(stage, config.init_from, config.seed)
    trainer = Trainer(stage.model, context, config.optimizer)
    objective, temperature = config.objective, config.sampling.temperature
    reference = ReferencePolicy(trainer, temperature) if objective.kl_beta > 0 else None  # before any later weights
    start = 0
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is not None:
        start, extra = load_checkpoint(checkpoint, stage.model, context, trainer.optimizer)
        stream.load_state_dict(extra["prompts"])
    run.start_logging(start)

    sampler = Sampler(stage.model, context, config.sampling, tokenizer.eos_id)
    loss = PolicyLoss(objective.name, context.tensor_rank, temperature, objective.clip, objective.kl_beta,
                      objective.alpha_entropy)  # fmt: skip
    budget = config.budget.resolve(context.data_size) if objective.name == "c3po" else None
    if context.is_main:
        said = f"Phi = {budget:,} tokens a step ({config.budget.scope} budget)" if budget else "no token budget (GRPO)"
        print(f"rl: {config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {said}"
              + (f", continuing after step {start}" if start else ""), flush=True)  # fmt: skip

    with (
        RewardPool(config.rewards.workers, config.rewards.time_limit) as rewards,
        Progress("rl", config.steps, start, context.is_main) as progress,
    ):
        for step in range(start, config.steps):
            began = time.perf_counter()
            collected = collect_step(config, step, stream, sampler, tokenizer, rewards, budget)
            batches = pack_step(collected, config, context, tokenizer.pad_id)
            started_training = time.perf_counter()
            if reference is not None:
                batches = reference.annotate(batches)
            lr = config.optimizer.lr_at(step, config.steps)
            result = trainer.train_step(batches, loss, lr)
            sampler.weights_changed()
            ended = time.perf_counter()
            metrics: dict[str, Any] = {
                "step": step + 1,
                **rl_metrics(collected, result),
                "lr": lr,
                "time/step": ended - began,
                "time/sample": collected.sample_seconds,
                "time/reward": collected.reward_seconds,
                "time/train": ended - started_training,
                "throughput/tokens_per_second": collected.generated_tokens / (ended - began),
            }
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                metrics["checkpoint"] = f"step_{step + 1}"
                save_checkpoint(run.checkpoints, step + 1, stage.model, trainer.optimizer, context,
                                {"prompts": stream.state_dict()}, config.keep_last)  # fmt: skip
            run.write_rollouts(step + 1, rollout_rows(collected, tokenizer))
            run.log(metrics)
            progress.update(step + 1, f"reward {metrics['reward/mean']:.3f} entropy {metrics['entropy']:.3f}")
    run.close()


def cli() -> None:
    run_main(lambda: main(parse(RLConfig, "ring-rl", "Reinforcement of a Ring MoE with C3PO.")))


if __name__ == "__main__":
    cli()
