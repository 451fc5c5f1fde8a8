"""Reinforcement with C3PO: sample on the live weights, score, select exactly the token budget, train.

    torchrun --nproc-per-node 8 -m megatron_ring.rl --run-dir runs/rl --init-from CKPT --data.prompts FILE …

The same command continues a run that was stopped.
"""

from __future__ import annotations

import time
from typing import Any

from megatron_ring.cli import parse
from megatron_ring.config import require
from megatron_ring.errors import run_main
from megatron_ring.stage_config import RLConfig

MEMORY_AND_SPEED = ("max_batch", "prefill_tokens", "page_size", "kv_tokens", "kv_fraction", "cuda_graphs")
MAY_DIFFER = frozenset(
    {"run_dir", "steps", "save_every", "keep_last", "async_save", "layer_impl", "recompute", "exact", "rewards.workers"}
    | {f"sampling.{name}" for name in MEMORY_AND_SPEED}
    | {"reference.place"}
)


def main(config: RLConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_rl

        return plan_rl(config)
    from megatron_ring.training.stage import resolve_shape

    config = config.resolved()
    shape = resolve_shape(None, config.init_from)

    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.saving import CheckpointSaver, latest_checkpoint
    from megatron_ring.data.files import read_prompts
    from megatron_ring.data.prompts import PromptStream
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.parallel.context import world_size_from_environment
    from megatron_ring.rl.budget_schedule import BudgetSchedule
    from megatron_ring.sampler.sampler import Sampler
    from megatron_ring.training.policy_update import PolicyUpdate
    from megatron_ring.training.progress import Progress
    from megatron_ring.training.rl_step import collect_step, pack_step, rl_metrics, rollout_rows
    from megatron_ring.training.rollout_rewards import open_scorer
    from megatron_ring.training.run_dir import RunDirectory
    from megatron_ring.training.stage import set_first_weights, start_stage
    from megatron_ring.training.trainer import Trainer

    config.check(max(1, config.parallel.data(world_size_from_environment())))
    tokenizer = RingTokenizer.load(config.data.tokenizer)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"--data.tokenizer: {tokenizer.vocab_size} tokens, the model has only {shape.vocab_size}",
    )
    prompts = read_prompts(config.data.prompts)
    stream = PromptStream(prompts, config.seed)

    stage = start_stage(
        shape, config.parallel, config.router, config.seed, config.precision, config.layer_impl,
        config.recompute, config.exact,
    )  # fmt: skip
    context = stage.context
    run = RunDirectory(config.run_dir, writes=context.is_main)
    run.open("rl", config, MAY_DIFFER)
    set_first_weights(stage, config.init_from, config.seed)
    trainer = Trainer(stage.model, context, config.optimizer)
    policy = PolicyUpdate(config, trainer, tokenizer.pad_id, run.path / "reference")  # before any later weights
    schedule = BudgetSchedule(config.budget.schedule, *config.budget.resolve(context.data_size))
    start = 0
    checkpoint = latest_checkpoint(run.checkpoints)
    if checkpoint is not None:
        start, extra = load_checkpoint(checkpoint, stage.model, context, trainer.optimizer)
        stream.load_state_dict(extra["prompts"])
        schedule.load_state_dict(extra["budget"])
        policy.load(extra["policy"])
    run.start_logging(start)

    sampler = Sampler(stage.model, context, config.sampling, tokenizer.eos_id, tokenizer.decode)
    has_budget = config.objective.name == "c3po"
    if context.is_main:
        said = f"Phi = {schedule.tokens(start, config.steps):,} tokens ({config.budget.scope}, {config.budget.schedule})"
        print(f"rl: {config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {config.objective.name}, "
              + (said if has_budget else "no token budget")
              + (f", continuing after step {start}" if start else ""), flush=True)  # fmt: skip

    with (
        open_scorer(config.rewards, {prompt.domain for prompt in prompts}, tokenizer, context) as scorer,
        CheckpointSaver(run.checkpoints, context, config.keep_last, config.async_save) as saver,
        Progress("rl", config.steps, start, context.is_main) as progress,
    ):
        for step in range(start, config.steps):
            began = time.perf_counter()
            budget = schedule.tokens(step, config.steps) if has_budget else None
            collected = collect_step(config, step, stream, sampler, tokenizer, scorer, budget, policy.reward_kl)
            batches = pack_step(collected, config, policy.loss.objective, context, tokenizer.pad_id)
            started_training = time.perf_counter()
            batches, measured = policy.annotate(batches)
            lr = config.optimizer.lr_at(step, config.steps)
            result = trainer.train_step(batches, policy.loss, lr)
            sampler.weights_changed()
            schedule.observe([item.reward for item in collected.scored])
            policy.finish(step + 1)
            ended = time.perf_counter()
            metrics: dict[str, Any] = {
                "step": step + 1,
                **rl_metrics(collected, result),
                **measured,
                "solve_rate": schedule.solve_rate,
                "lr": lr,
                "time/step": ended - began,
                "time/sample": collected.sample_seconds,
                "time/reward": collected.reward_seconds,
                "time/train": ended - started_training,
                "throughput/tokens_per_second": collected.generated_tokens / (ended - began),
            }
            saves = (step + 1) % config.save_every == 0 or step + 1 == config.steps
            if saves:
                metrics["checkpoint"] = f"step_{step + 1}"
            run.write_rollouts(step + 1, rollout_rows(collected, tokenizer))
            run.log(metrics)  # before the save: a run continued from this checkpoint finds its own line
            if saves:
                saver.wait()  # before `policy.save`: until it is whole the one before it counts
                extra = {"prompts": stream.state_dict(), "budget": schedule.state_dict(), "policy": policy.save()}
                saver.save(step + 1, stage.model, trainer.optimizer, extra)
            saver.check()
            progress.update(step + 1, f"reward {metrics['reward/mean']:.3f} entropy {metrics['entropy']:.3f}")
    run.close()


def cli() -> None:
    run_main(lambda: main(parse(RLConfig, "ring-rl", "Reinforcement of a Ring MoE with C3PO.")))


if __name__ == "__main__":
    cli()
