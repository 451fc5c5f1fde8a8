"""An RL run: all that lives from step to step, what one step does with it, and what of it checkpoints hold."""

from __future__ import annotations

import time
from typing import Any

from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.saving import CheckpointSaver, latest_checkpoint
from megatron_ring.config import require
from megatron_ring.data.prompts import PromptStream
from megatron_ring.data.schedule import read_schedule
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.parallel.context import world_size_from_environment
from megatron_ring.rl.budget_schedule import BudgetSchedule
from megatron_ring.sampler.sampler import Sampler
from megatron_ring.stage_config import RLConfig
from megatron_ring.training.policy_update import PolicyUpdate
from megatron_ring.training.rl_metrics import rl_metrics, rollout_rows
from megatron_ring.training.rl_step import collect_step, pack_step
from megatron_ring.training.rollout_rewards import RolloutScorer, check_domains
from megatron_ring.training.run_dir import RunDirectory
from megatron_ring.training.stage import resolve_shape, set_first_weights, start_stage
from megatron_ring.training.trainer import Trainer


class RLRun:
    """Build it in every process. The model has the weights that RL starts from, until `restore`."""

    def __init__(self, config: RLConfig, may_differ: frozenset[str]) -> None:
        """`config` is resolved. `may_differ`: settings that a continued run may change.

        Raises:
            UserError: the configuration fits neither the layout, the model, the tokenizer, the data nor the run directory.
        """
        self.config = config
        shape = resolve_shape(None, config.init_from)
        config.check(max(1, config.parallel.data(world_size_from_environment())))
        self.tokenizer = RingTokenizer.load(config.data.tokenizer)
        require(
            self.tokenizer.vocab_size <= shape.vocab_size,
            f"--data.tokenizer: {self.tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
        )
        data = config.data
        prompts = read_schedule(data.prompts, data.min_solve_rate, data.max_solve_rate)
        check_domains(prompts.sources, config.rewards)
        self.domains = prompts.domains
        floor = None if data.curriculum == "none" else data.curriculum_floor
        self.stream = PromptStream(prompts, config.seed, data.drop_after, floor)
        self.stage = start_stage(
            shape, config.parallel, config.router, config.seed, config.precision, config.layer_impl, config.recompute
        )
        self.context, model = self.stage.context, self.stage.model
        self.directory = RunDirectory(config.run_dir, writes=self.context.is_main)
        self.directory.open("rl", config, may_differ)
        set_first_weights(self.stage, config.init_from, config.seed)
        self.trainer = Trainer(model, self.context, config.optimizer)
        # Copies the weights as the reference: before any later ones.
        self.policy = PolicyUpdate(config, self.trainer, self.tokenizer.pad_id, self.directory.path / "reference")
        self.schedule = BudgetSchedule(config.budget.schedule, *config.budget.resolve(self.context.data_size))
        self.sampler = Sampler(model, self.context, config.sampling, self.tokenizer.eos_id, self.tokenizer.decode)

    def restore(self) -> int:
        """Go on from the last whole checkpoint, if there is one; the steps done, 0 without one."""
        start = 0
        checkpoint = latest_checkpoint(self.directory.checkpoints)
        if checkpoint is not None:
            start, extra = load_checkpoint(checkpoint, self.stage.model, self.context, self.trainer.optimizer)
            self.stream.load_state_dict(extra["prompts"])
            self.schedule.load_state_dict(extra["budget"])
            self.policy.load(extra["policy"])
        self.directory.start_logging(start)
        return start

    def budget(self, step: int) -> int | None:
        """Phi of the 0-based `step` (tokens of all ranks), for objectives that have one."""
        return self.schedule.tokens(step, self.config.steps) if self.config.objective.name == "c3po" else None

    def step(self, step: int, scorer: RolloutScorer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """One update, the 0-based `step`: its metrics and a row for each of its responses."""
        config, policy, began = self.config, self.policy, time.perf_counter()
        collected = collect_step(
            config, step, self.stream, self.sampler, self.tokenizer, scorer, self.budget(step), policy.reward_kl
        )
        batches = pack_step(collected, config, policy.loss.objective, self.context, self.tokenizer.pad_id)
        started_training = time.perf_counter()
        batches, measured = policy.annotate(batches)
        lr = config.optimizer.lr_at(step, config.steps)
        result = self.trainer.train_step(batches, policy.loss, lr)
        self.sampler.weights_changed()
        self.schedule.observe([item.reward for item in collected.scored])
        self.stream.observe(collected.groups)
        policy.finish(step + 1)
        ended = time.perf_counter()
        metrics = {
            "step": step + 1,
            **rl_metrics(collected, result),
            **measured,
            **self.stream.figures(step),
            "solve_rate": self.schedule.solve_rate,
            "lr": lr,
            "time/step": ended - began,
            "time/sample": collected.sample_seconds,
            "time/reward": collected.reward_seconds,
            "time/train": ended - started_training,
            "throughput/tokens_per_second": collected.generated_tokens / (ended - began),
        }
        return metrics, rollout_rows(collected, self.tokenizer)

    def save(self, saver: CheckpointSaver, steps: int) -> None:
        """Save the state after `steps` steps."""
        saver.wait()  # before `policy.save`: until it is whole the one before it counts
        extra = {"prompts": self.stream.state_dict(), "budget": self.schedule.state_dict(), "policy": self.policy.save()}
        saver.save(steps, self.stage.model, self.trainer.optimizer, extra)
