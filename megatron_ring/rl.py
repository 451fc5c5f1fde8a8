"""Reinforcement with C3PO: sample on the live weights, score, select exactly the token budget, train.

    torchrun --nproc-per-node 8 -m megatron_ring.rl --run-dir runs/rl --init-from CKPT --data.prompts FILE …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it (torchrun turns either into 1 of its own).
"""

from __future__ import annotations

import math

from megatron_ring.config.cli import parse
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import StoppedByAlarm, run_main
from megatron_ring.parallel import prepare


def main(config: RLConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_rl

        return plan_rl(config)
    prepare()
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.rollout.rl_run import RLRun
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import latest_of

    run = RLRun(config)
    config = run.config
    start = run.restore()
    context, directory = run.context, run.directory
    if context.is_main:
        phi = run.budget(start)
        said = f"Phi = {phi:,} tokens ({config.budget.scope}, {config.budget.schedule})" if phi else "no token budget"
        print(f"rl: {config.prompts_per_step} prompts x {config.samples_per_prompt} samples, {config.objective.name}, "
              + said + (f", continuing after step {start}" if start else ""), flush=True)  # fmt: skip
        for remark in run.remarks(start):
            print(f"rl: {remark}", flush=True)

    with (
        open_scorer(config.rewards, run.domains, run.tokenizer, context) as scorer,
        CheckpointSaver(directory.checkpoints, context, config.keep_last, config.async_save) as saver,
        Progress("rl", config.steps, start, context.is_main) as progress,
    ):
        run.phases.finish()  # what came before belongs to no step
        step = start
        while step < config.steps:
            outcome = run.step(step, scorer)
            if outcome.alarms:
                saver.wait()  # all ranks see the same last checkpoint
            last = latest_of(directory) if outcome.alarms else None
            verdict = run.watch.judge(outcome.alarms, last, outcome.can_go_on)
            if verdict == "rollback":
                step = run.roll_back(outcome.alarms)
                continue
            step += 1
            saves = verdict == "go on" and (step % config.save_every == 0 or step == config.steps)
            if saves:
                outcome.metrics["checkpoint"] = f"step_{step}"
            run.write_rollouts(step, outcome)
            metrics = run.timed(outcome)
            directory.log(metrics)  # before the save: a run continued from this checkpoint finds its own line
            if verdict == "stop":
                directory.close()
                raise StoppedByAlarm(run.watch.last_words(outcome.alarms, last))
            if saves:
                run.save(saver, step)
            saver.check()
            progress.update(step, f"reward {metrics['reward/mean']:.3f} entropy {metrics.get('entropy', math.nan):.3f}")
    directory.close()


def cli() -> None:
    run_main(lambda: main(parse(RLConfig, "ring-rl", "Reinforcement of a Ring MoE with C3PO.")))


if __name__ == "__main__":
    cli()
