"""Pretraining and continued pretraining: blends of tokenized corpora, loss on every token.

    torchrun --nproc-per-node 8 -m megatron_ring.pretrain --run-dir runs/base --preset ring-lite --data.train web:7 code:3 …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it, 75 when a signal did (torchrun turns each into 1 of its own).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron_ring.config.cli import parse
from megatron_ring.config.pretrain import PretrainConfig
from megatron_ring.errors import StoppedByAlarm, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # rooms that import torch load when a run starts, so that --help answers at once
    from megatron_ring.run.pretraining import PretrainState
    from megatron_ring.run.watch import StepGuard
    from megatron_ring.training.trainer import StepResult


def main(config: PretrainConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_pretrain

        return plan_pretrain(config)
    prepare()
    from megatron_ring.run.smaller import run_with_smaller

    run_with_smaller(pretrain, config)


def pretrain(asked: PretrainConfig) -> None:
    """All steps of a run, or those that are left.

    Raises:
        SmallerSizes: a size that was chosen for it leaves no room for the first step.
    """
    from megatron_ring.corpus.mixing import open_corpora
    from megatron_ring.parallel import collectives
    from megatron_ring.run.micro_batches import choose
    from megatron_ring.run.pretraining import open_state
    from megatron_ring.run.stage import open_model, open_run, resolve

    config, shape, tokenizer = resolve(asked)
    corpora = collectives.from_main(lambda: open_corpora(config.data, tokenizer))
    chosen, told = choose(config, shape)
    directory = open_run(chosen, {"data.tokenizer": tokenizer.fingerprint})
    directory.notes += (told,) if told else ()
    try:
        stage = open_model(chosen, shape, directory.first_weights)
        train(open_state(chosen, stage, directory, tokenizer, corpora), asked.data.micro_batch_tokens == "auto")
    finally:
        directory.close()


def train(run: PretrainState, may_shrink: bool = False) -> None:
    """All steps that are left. `may_shrink`: micro-batches may be halved where the first one has no room."""
    from megatron_ring.garbage import kept_what_is_there
    from megatron_ring.parallel.device import has_cuda
    from megatron_ring.run.micro_batches import room_for
    from megatron_ring.run.pretraining import restore, roll_back, save
    from megatron_ring.run.pretraining_figures import describe
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import latest_of, open_saver, open_stop_request

    start, remarks = restore(run)
    step = start
    config, context, directory = run.config, run.stage.context, run.directory
    if context.is_main:
        for remark in (*directory.notes, *describe(run, step), *remarks):
            print(f"pretrain: {remark}", flush=True)
    with (
        open_stop_request(directory, config) as stop,
        open_saver(directory, config, context) as saver,
        Progress("pretrain", run.steps, step, context.is_main) as progress,
        kept_what_is_there(looks=has_cuda()),
    ):
        while step < run.steps:
            with room_for(step + 1, config, context, may_shrink and step == start):
                metrics, guard = one_step(run, step)
            alarms = guard.judge(metrics)
            if alarms:
                saver.wait()  # all ranks see the same last checkpoint
            last = latest_of(directory) if alarms else None
            verdict = run.watch.judge(alarms, last, guard.can_go_on)
            if verdict == "rollback":
                step = roll_back(run, alarms)
                continue
            step, stops = step + 1, stop.agreed()
            saves = verdict == "go on" and (stops or step % config.save_every == 0 or step == run.steps)
            if saves:
                metrics["checkpoint"] = f"step_{step}"
            directory.log(metrics | run.watch.take_records(step))  # before the save: a run that goes on finds its own line
            if verdict == "stop":
                raise StoppedByAlarm(run.watch.last_words(alarms, last))
            if saves:
                save(run, saver, step, last=stops or step == run.steps)
            if stops:
                saver.wait()
                stop.finish(step, context.is_main, config.save_optimizer)
            saver.check()
            progress.update(step, f"loss {metrics.get('loss', math.nan):.3f} lr {metrics['lr']:.3g}")
    run.stream.close()


def one_step(run: PretrainState, step: int) -> tuple[dict[str, Any], StepGuard]:
    """The 0-based `step`: its metrics, and the guard that has what failed."""
    from megatron_ring.run.pretraining_figures import measure, router_metrics, step_metrics
    from megatron_ring.training.losses import SFTLoss

    config, before, began = run.config, run.stream.place.samples, time.perf_counter()
    lr, guard = config.optimizer.lr_at(step, run.steps), run.watch.guard(step + 1)
    ends = step + 1 == run.steps
    batches = run.stream.next(more=not ends)
    waited = time.perf_counter() - began
    samples = run.stream.place.samples
    metrics: dict[str, Any] = {"step": step + 1, "samples": samples, "tokens": run.tokens, "lr": lr}
    with guard("loss"):
        result = run.trainer.train_step(batches, SFTLoss(), lr, accepts(run))
        if result.updated:
            run.tokens += result.routed_tokens
        metrics |= step_metrics(result, time.perf_counter() - began)
        metrics |= {"tokens": run.tokens, "data/batch": samples - before, "time/data": waited}
        metrics |= {f"data/epochs/{name}": epochs for name, epochs in run.stream.epochs().items()}
        metrics |= router_metrics(result.loads, run.stage.shape.first_dense_layers)
    if not guard.alarms and (ends or (step + 1) % config.validation_every == 0):
        metrics |= measure(run, run.validated, "validation")
        if ends:
            metrics |= measure(run, run.tested, "test")
    return metrics, guard


def accepts(run: PretrainState) -> Callable[[StepResult], bool] | None:
    """What leaves out updates under --alarms.action skip: the rules of the loss and the gradient norm, as rank 0 sees
    them."""
    from megatron_ring.parallel import collectives

    if run.config.alarms.action != "skip":
        return None

    def judge(result: StepResult) -> bool:
        figures = {"loss": result.mean("loss"), "grad_norm": result.grad_norm}
        return not collectives.from_main(lambda: run.watch.rules.spikes(figures))

    return judge


def cli() -> None:
    run_main(lambda: main(parse(PretrainConfig, "ring-pretrain", "Pretraining and continued pretraining of a Ring MoE.")))


if __name__ == "__main__":
    cli()
