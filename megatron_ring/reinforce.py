"""Reinforcement with C3PO: sample on the live weights, score, select exactly the token budget, train.

    torchrun --nproc-per-node 8 -m megatron_ring.rl --run-dir runs/rl --init-from CKPT --data.prompts FILE …

The same command continues a run that was stopped.
"""

from __future__ import annotations

from megatron_ring.cli import parse
from megatron_ring.errors import run_main
from megatron_ring.stage_config import RLConfig

MAY_DIFFER = frozenset(
    {"run_dir", "steps", "save_every", "keep_last", "async_save", "layer_impl", "recompute", "rewards.workers"}
    | {f"sampling.{name}" for name in ("max_batch", "prefill_tokens", "page_size", "kv_tokens", "kv_fraction")}
    | {"reference.place"}
)


def main(config: RLConfig) -> None:
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.training.progress import Progress
    from megatron_ring.training.rl_run import RLRun
    from megatron_ring.training.rollout_rewards import open_scorer

    config = config.resolved()
    run = RLRun(config, MAY_DIFFER)
    start = run.restore()
    context, directory = run.context, run.directory
    if context.is_main:
        phi = run.budget(start)
        said = f"Phi = {phi:,} tokens ({config.budget.scope}, {config.budget.schedule})" if phi else "no token budget"
        print(f"rl: {config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {config.objective.name}, "
              + said + (f", continuing after step {start}" if start else ""), flush=True)  # fmt: skip

    with (
        open_scorer(config.rewards, run.domains, run.tokenizer, context) as scorer,
        CheckpointSaver(directory.checkpoints, context, config.keep_last, config.async_save) as saver,
        Progress("rl", config.steps, start, context.is_main) as progress,
    ):
        for step in range(start, config.steps):
            metrics, rows = run.step(step, scorer)
            saves = (step + 1) % config.save_every == 0 or step + 1 == config.steps
            if saves:
                metrics["checkpoint"] = f"step_{step + 1}"
            directory.write_rollouts(step + 1, rows)
            directory.log(metrics)  # before the save: a run continued from this checkpoint finds its own line
            if saves:
                run.save(saver, step + 1)
            saver.check()
            progress.update(step + 1, f"reward {metrics['reward/mean']:.3f} entropy {metrics['entropy']:.3f}")
    directory.close()


def cli() -> None:
    run_main(lambda: main(parse(RLConfig, "ring-rl", "Reinforcement of a Ring MoE with C3PO.")))


if __name__ == "__main__":
    cli()
