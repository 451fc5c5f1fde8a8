"""Long-CoT supervised fine-tuning: packed conversations, loss on responses, one checkpoint per epoch.

    torchrun --nproc-per-node 8 -m megatron_ring.sft --run-dir runs/sft --init-from DIR --data.train FILE …

The same command continues a run that was stopped. Exit status: 0 when the run is done, 2 for a mistake, 3 when an alarm
stopped it, 75 when a signal did (torchrun turns each into 1 of its own).
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from megatron_ring.config.cli import parse
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import StoppedByAlarm, run_main
from megatron_ring.parallel import prepare

if TYPE_CHECKING:  # rooms that import torch load when a run starts, so that --help answers at once
    from megatron_ring.data.sft_data import SFTDataset
    from megatron_ring.run.directory import RunDirectory
    from megatron_ring.run.stage import Stage
    from megatron_ring.training.trainer import StepResult, Trainer


def main(config: SFTConfig) -> None:
    if config.dry_run:
        from megatron_ring.planning.stages import plan_sft

        return plan_sft(config)
    prepare()
    from megatron_ring.data.sft_data import load_datasets
    from megatron_ring.run.stage import open_model, open_run, resolve

    config, shape, tokenizer = resolve(config)
    data, validation = load_datasets(config.data, tokenizer, config.seed, shape.max_positions)
    content = {"data.tokenizer": tokenizer.fingerprint, "data.train": data.fingerprint}
    if validation is not None:
        content["data.validation"] = validation.fingerprint
    run = open_run(config, content)
    stage = open_model(config, shape, run.first_weights)
    try:
        train(config, stage, run, data, validation)
    finally:
        run.close()


def train(config: SFTConfig, stage: Stage, run: RunDirectory, data: SFTDataset, validation: SFTDataset | None) -> None:
    """All steps that are left."""
    from megatron_ring.run.continuing import stretched_rates
    from megatron_ring.run.progress import Progress
    from megatron_ring.run.stage import latest_of, load_latest, open_saver, open_stop_request
    from megatron_ring.run.watch import Watch
    from megatron_ring.training.losses import SFTLoss
    from megatron_ring.training.trainer import Trainer

    context, loss = stage.context, SFTLoss()
    trainer, watch = Trainer(stage.model, context, config.optimizer), Watch(config.alarms, speaks=context.is_main)
    start, extra = load_latest(run, stage, trainer.optimizer)
    tokens = extra.get("tokens", 0)
    if "watch" in extra:
        watch.load_state_dict(extra["watch"])
    run.start_logging(start)
    all_steps = config.epochs * data.steps_per_epoch
    last = min(all_steps, config.max_steps or all_steps)
    if context.is_main:
        describe(data, start)
        done = [f"all {last} steps are done: more need more --epochs or --max-steps"] if start >= last else []
        for remark in (*run.notes, *stretched_rates(config.optimizer, start, extra.get("steps"), all_steps), *done):
            print(f"sft: {remark}", flush=True)
    with (
        open_stop_request(run, config) as stop,
        open_saver(run, config, context) as saver,
        Progress("sft", last, start, context.is_main) as progress,
    ):
        for step in range(start + 1, last + 1):
            began = time.perf_counter()
            epoch, place = divmod(step - 1, data.steps_per_epoch)
            ends_epoch = place + 1 == data.steps_per_epoch
            lr, guard = config.optimizer.lr_at(step - 1, all_steps), watch.guard(step)
            metrics: dict[str, Any] = {"step": step, "epoch": step / data.steps_per_epoch, "tokens": tokens, "lr": lr}
            with guard("loss"):
                result = trainer.train_step(data.batch(epoch, place, context.data_rank, context.data_size), loss, lr)
                tokens += result.routed_tokens
                metrics |= {"tokens": tokens, **step_metrics(result, time.perf_counter() - began)}
            if ends_epoch and validation is not None and not guard.alarms:
                metrics |= evaluate(trainer, validation, loss)
            alarms, stops = guard.judge(metrics), stop.agreed()
            checkpoint = latest_of(run) if alarms else None
            verdict = watch.judge(alarms, checkpoint, guard.can_go_on)
            regular = ends_epoch or step == last or (config.save_every and step % config.save_every == 0)
            saves = verdict == "go on" and (regular or stops)
            if saves:
                metrics["checkpoint"] = f"step_{step}"
            run.log(metrics | watch.take_records(step))  # before the save: a run continued from it finds its own line
            if verdict == "stop":
                raise StoppedByAlarm(watch.last_words(alarms, checkpoint))
            if saves:
                extra = {"tokens": tokens, "steps": all_steps, "watch": watch.state_dict(), **run.of_checkpoints}
                saver.save(step, stage.model, trainer.optimizer, extra)
            if stops:
                saver.wait()
                stop.finish(step, context.is_main)
            saver.check()
            progress.update(step, f"loss {metrics.get('loss', math.nan):.3f} entropy {metrics.get('entropy', math.nan):.3f}")


def describe(data: SFTDataset, start: int) -> None:
    """Tell the user what will be trained."""
    if data.note:
        print(f"sft: {data.note}", flush=True)
    dropped = f", {data.dropped} too long and left out" if data.dropped else ""
    dropped += f", {data.dropped_controls} with control tokens left out" if data.dropped_controls else ""
    resumed = f", continuing after step {start}" if start else ""
    tokens = f"{data.tokens:,} tokens ({data.loss_tokens:,} trained)"
    print(
        f"sft: {data.sequences} conversations{dropped}, {tokens} in {data.steps_per_epoch} steps an epoch{resumed}",
        flush=True,
    )


def step_metrics(result: StepResult, seconds: float) -> dict[str, Any]:
    """What a step of so many seconds gave."""
    return {
        "loss": result.mean("loss"),
        "entropy": result.mean("entropy"),
        "grad_norm": result.grad_norm,
        "attention": result.attention,
        "loss/balance": result.balance,
        "loss/z": result.z,
        "time/step": seconds,
        "throughput/tokens_per_second": result.routed_tokens / seconds,
    }


def evaluate(trainer: Trainer, validation: SFTDataset, loss: Any) -> dict[str, float]:
    """Mean loss and entropy per response token of the validation file."""
    context = trainer.context
    sums = {"loss": 0.0, "entropy": 0.0}
    tokens = 0
    for step in range(validation.steps_per_epoch):
        result = trainer.evaluate(validation.batch(0, step, context.data_rank, context.data_size), loss)
        sums = {name: value + result.sums[name] for name, value in sums.items()}
        tokens += result.loss_tokens
    means = {f"validation/{name}": value / max(1, tokens) for name, value in sums.items()}
    return means | {"validation/tokens": tokens, "validation/perplexity": math.exp(means["validation/loss"])}


def cli() -> None:
    run_main(lambda: main(parse(SFTConfig, "ring-sft", "Long-CoT supervised fine-tuning of a Ring MoE.")))


if __name__ == "__main__":
    cli()
