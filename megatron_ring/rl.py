"""Reinforcement with C3PO: sample on the live weights, score, select exactly the token budget, train.

    torchrun --nproc-per-node 8 -m megatron_ring.rl --run-dir runs/rl --init-from CKPT --data.prompts FILE …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it, 75 when a signal did (torchrun turns each into 1 of its own).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from megatron_ring.config.cli import parse
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import StoppedByAlarm, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # rooms that import torch load when a run starts, so that --help answers at once
    from megatron_ring.rollout.scoring import RolloutScorer
    from megatron_ring.rollout.state import RLState, StepOutcome


def main(config: RLConfig) -> None:
    """All steps of a run, or those that are left; again with smaller sizes where the first step has no room."""
    if config.dry_run:
        from megatron_ring.planning.stages import plan_rl

        return plan_rl(config)
    prepare()
    from megatron_ring.run.smaller import run_with_smaller

    run_with_smaller(train, config)


def train(config: RLConfig) -> None:
    """All steps of a run, or those that are left.

    Raises:
        SmallerSizes: sizes that were chosen for it leave no room for the first step.
    """
    from megatron_ring.garbage import kept_what_is_there
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.rollout.first_step import first_step
    from megatron_ring.rollout.opening import announce, open_rl
    from megatron_ring.rollout.saved_state import restore, roll_back, save
    from megatron_ring.rollout.scoring import open_scorer
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import latest_of, next_multiple, open_saver, open_stop_request

    run, asked = open_rl(config), config
    start = restore(run)
    announce(run, start)
    config, context, directory = run.config, run.stage.context, run.directory
    with (
        open_stop_request(directory, config) as stop,
        open_scorer(config.rewards, run.domains, run.tokenizer, context, run.sampler, directory.replies) as scorer,
        open_saver(directory, config, context) as saver,
        Progress("rl", config.steps, start, context.is_main) as progress,
        kept_what_is_there(looks=has_cuda()),
    ):
        run.phases.finish()  # what came before belongs to no step
        step = start
        while step < config.steps:
            with first_step(run, asked, step):
                outcome = reinforce(run, scorer, step)
            if step == start and next_multiple(config.save_every, start) < config.steps:
                saver.reserve(run.stage.model, run.trainer.optimizer)
            if outcome.alarms:
                saver.wait()  # all ranks see the same last checkpoint
            last = latest_of(directory) if outcome.alarms else None
            verdict = run.watch.judge(outcome.alarms, last, outcome.can_go_on)
            if verdict == "rollback":
                step = roll_back(run, outcome.alarms)
                continue
            step, stops = step + 1, stop.agreed()
            saves = verdict == "go on" and (stops or step % config.save_every == 0 or step == config.steps)
            if saves:
                outcome.metrics["checkpoint"] = f"step_{step}"
            metrics = run.record(outcome, step)  # before the save: a run continued from this checkpoint finds its own line
            if verdict == "stop":
                directory.close()
                raise StoppedByAlarm(run.watch.last_words(outcome.alarms, last))
            if saves:
                save(run, saver, step, last=stops or step == config.steps)
            if stops:
                saver.wait()
                stop.finish(step, context.is_main, config.save_optimizer)
            saver.check()
            progress.update(step, f"reward {metrics['reward/mean']:.3f} entropy {metrics.get('entropy', math.nan):.3f}")
    directory.close()


def reinforce(run: RLState, scorer: RolloutScorer, step: int) -> StepOutcome:
    """The 0-based `step`: one round of responses, and the update, or updates, that it gives."""
    from megatron_ring.algorithm.budget import select_budget
    from megatron_ring.rollout import metrics as figures
    from megatron_ring.rollout.packing import pack_step
    from megatron_ring.rollout.select import (
        Selection,
        budget_order,
        kept_responses,
        response_advantages,
        response_lengths,
        step_updates,
    )
    from megatron_ring.rollout.state import StepOutcome

    config, policy, phases, context = run.config, run.policy, run.phases, run.stage.context
    budget, lr, guard = run.budget(step), config.optimizer.lr_at(step, config.steps), run.watch.guard(step + 1)

    with guard("sampling"), run.offload.away():
        collected = run.collector.collect(step, scorer, budget)  # samples rounds, and scores while it samples
        with phases("select"):
            kept = kept_responses(config, collected.scored, budget)  # dynamic sampling drops groups without a signal
            distances = policy.reward_distances(kept)  # of a KL in the reward
            shaped = run.shaping.rewards(collected.scored, kept)
            advantages = response_advantages(config.objective, kept, shaped, distances)
            order = budget_order(config, step, kept, advantages)
            trained = select_budget(response_lengths(kept), budget, order).trained
            selection = Selection(kept, advantages, trained, distances, step_updates(config, trained, order))
    if guard.alarms:
        return StepOutcome({"step": step + 1}, guard.alarms, guard.can_go_on)
    with phases("pack"):
        updates = pack_step(selection, config, policy.loss.objective, run.stage.model, context, run.tokenizer.pad_id)
    with phases("first_pass"):
        updates = policy.annotate_updates(updates)  # log-probs recomputed and of the reference, where they are needed
    update = {}
    with phases("train"):
        with guard("grad_norm"):
            update = figures.update_metrics(policy.train(updates, lr), budget, selection.kl)
        update |= policy.loss.take_ratios(context.device)
        run.sampler.weights_changed()  # nothing cached outlives a step
        run.learn(collected)
        policy.finish(step + 1)
    if run.held_out.due(step + 1) and not guard.alarms:
        with guard("evaluation"), run.offload.away(), phases("evaluation"):
            update |= run.held_out.measure(run.sampler, scorer)
    computed = sum(batch.tokens.numel() for batches in updates for batch in batches) * context.data_size
    metrics = {
        "step": step + 1,
        **figures.sampling_metrics(collected, selection, by_domain=run.several_domains),
        "tokens/packed_fraction": figures.packed_fraction(selection, computed),
        **update,
        **run.stream.figures(step),
        **run.shaping.figures(),
        "solve_rate": run.schedule.solve_rate,
        "lr": lr,
        "throughput/tokens_per_second": collected.generated_tokens,
    }
    return StepOutcome(metrics, guard.judge(metrics), guard.can_go_on, collected, selection)


def cli() -> None:
    run_main(lambda: main(parse(RLConfig, "ring-rl", "Reinforcement of a Ring MoE with C3PO.")))


if __name__ == "__main__":
    cli()
