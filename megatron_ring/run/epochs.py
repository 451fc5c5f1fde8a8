"""The loop of a stage that trains in epochs over a file: steps, alarms, validation, checkpoints, metrics, signals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from megatron_ring.config.epochs import EpochsConfig
from megatron_ring.config.model import ModelConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import StoppedByAlarm
from megatron_ring.garbage import kept_what_is_there
from megatron_ring.parallel.device import has_cuda
from megatron_ring.run.continuing import stretched_rates
from megatron_ring.run.directory import RunDirectory
from megatron_ring.run.micro_batches import choose, room_for
from megatron_ring.run.progress import Progress
from megatron_ring.run.smaller import run_with_smaller
from megatron_ring.run.stage import (
    Stage,
    latest_of,
    load_latest,
    next_multiple,
    open_model,
    open_run,
    open_saver,
    open_stop_request,
    resolve,
)
from megatron_ring.run.watch import Watch
from megatron_ring.training.trainer import AnyLoss, StepResult, Trainer


class EpochTask(Protocol):
    """What a stage trains on, and what it says of it."""

    steps_per_epoch: int

    @property
    def loss(self) -> AnyLoss: ...

    def batch(self, epoch: int, place: int, part: int, parts: int, sizes: Sequence[int]) -> list[Any]:
        """The micro-batches of a step, its number within the epoch counted from 0: the share of rank `part` of `parts`, so
        many packs in each."""
        ...

    def introduction(self, start: int) -> list[str]:
        """What is to be said at the start of a run that goes on after `start` steps."""
        ...

    def step_metrics(self, result: StepResult) -> dict[str, Any]:
        """What a step gave."""
        ...

    def validate(self, trainer: Trainer, step: int) -> dict[str, Any]:
        """What the validation file gives after so many steps; empty without one. All ranks take part."""
        ...

    def shown(self, metrics: dict[str, Any]) -> str:
        """The figures beside the progress bar."""
        ...


class Packed(Protocol):
    """A packed file."""

    fingerprint: str


Config = TypeVar("Config", bound=EpochsConfig)
Data = TypeVar("Data", bound=Packed)


def run_epochs(
    config: Config, load: Callable[[Config, RingTokenizer, ModelConfig], tuple[Data, Data | None]],
    task_of: Callable[[Config, RunDirectory, Data, Data | None], EpochTask],
) -> None:  # fmt: skip
    """A whole run of a main; again with smaller micro-batches where the first step has no room for those chosen.

    Args:
        load: the training and the validation file. Every process calls it.
        task_of: what is done with them.

    Raises:
        UserError: as `resolve`, `load`, `open_run` and `open_model`.
        StoppedByAlarm, StoppedBySignal: as `train_epochs`.
    """
    run_with_smaller(lambda config: _run_once(config, load, task_of), config)


def _run_once(
    asked: Config, load: Callable[[Config, RingTokenizer, ModelConfig], tuple[Data, Data | None]],
    task_of: Callable[[Config, RunDirectory, Data, Data | None], EpochTask],
) -> None:  # fmt: skip
    config, shape, tokenizer = resolve(asked)
    data, validation = load(config, tokenizer, shape)
    config, told = choose(config, shape)
    content = {"data.tokenizer": tokenizer.fingerprint, "data.train": data.fingerprint}
    if validation is not None:
        content["data.validation"] = validation.fingerprint
    run = open_run(config, content)
    run.notes += (told,) if told else ()
    stage = open_model(config, shape, run.first_weights)
    try:
        task = task_of(config, run, data, validation)
        train_epochs(config, stage, run, task, may_shrink=asked.data.micro_batch_tokens == "auto")
    finally:
        run.close()


def train_epochs(config: EpochsConfig, stage: Stage, run: RunDirectory, task: EpochTask, may_shrink: bool = False) -> None:
    """All steps that are left. `may_shrink`: micro-batches may be halved where the first one has no room.

    Raises:
        SmallerSizes: they are to be.
        StoppedByAlarm: an alarm went off.
        StoppedBySignal: a signal asked for the end.
        UserError: a checkpoint cannot be saved or loaded.
    """
    context, watch = stage.context, Watch(config.alarms, speaks=stage.context.is_main)
    trainer = Trainer(stage.model, context, config.optimizer)
    all_steps = config.epochs * task.steps_per_epoch
    last = min(all_steps, config.max_steps or all_steps)
    start, extra = load_latest(run, stage, trainer.optimizer, last)
    tokens = extra.get("tokens", 0)
    if "watch" in extra:
        watch.load_state_dict(extra["watch"])
    run.start_logging(start)
    if context.is_main:
        _announce(config, run, task, start, last, extra.get("steps"))
    sizes = config.micro_batches(context.data_size)
    with (
        open_stop_request(run, config) as stop,
        open_saver(run, config, context) as saver,
        Progress(config.stage_name, last, start, context.is_main) as progress,
        kept_what_is_there(looks=has_cuda()),
    ):
        for step in range(start + 1, last + 1):
            began, (epoch, place) = time.perf_counter(), divmod(step - 1, task.steps_per_epoch)
            ends_epoch = place + 1 == task.steps_per_epoch
            lr, guard = config.optimizer.lr_at(step - 1, all_steps), watch.guard(step)
            metrics: dict[str, Any] = {"step": step, "epoch": step / task.steps_per_epoch, "tokens": tokens, "lr": lr}
            with guard("loss"), room_for(step, config, context, may_shrink and step == start + 1):
                batches = task.batch(epoch, place, context.data_rank, context.data_size, sizes)
                result = trainer.train_step(batches, task.loss, lr)
                tokens += result.routed_tokens
                metrics |= {"tokens": tokens, **task.step_metrics(result), **_times(result, time.perf_counter() - began)}
            if ends_epoch and not guard.alarms:
                metrics |= task.validate(trainer, step)
            alarms, stops = guard.judge(metrics), stop.agreed()
            checkpoint = latest_of(run) if alarms else None
            verdict = watch.judge(alarms, checkpoint, guard.can_go_on)
            if step == start + 1 and next_save(config, task, start) < last:
                saver.reserve(stage.model, trainer.optimizer)
            whole_epoch = ends_epoch and (epoch + 1) % config.save_epochs == 0
            regular = whole_epoch or step == last or (config.save_every and step % config.save_every == 0)
            saves = verdict == "go on" and (regular or stops)
            if saves:
                metrics["checkpoint"] = f"step_{step}"
            run.log(metrics | watch.take_records(step))  # before the save: a run continued from it finds its own line
            if verdict == "stop":
                raise StoppedByAlarm(watch.last_words(alarms, checkpoint))
            if saves:
                extra = {"tokens": tokens, "steps": all_steps, "watch": watch.state_dict(), **run.of_checkpoints}
                saver.save(step, stage.model, trainer.optimizer, extra, last=stops or step == last)
            if stops:
                saver.wait()
                stop.finish(step, context.is_main, config.save_optimizer)
            saver.check()
            progress.update(step, task.shown(metrics))


def next_save(config: EpochsConfig, task: EpochTask, done: int) -> int:
    """The first step after `done` whose checkpoint is asked for."""
    of_epochs = next_multiple(config.save_epochs * task.steps_per_epoch, done)
    return min(of_epochs, next_multiple(config.save_every, done)) if config.save_every else of_epochs


def _times(result: StepResult, seconds: float) -> dict[str, Any]:
    """What every step of so many seconds tells."""
    return {
        "grad_norm": result.grad_norm,
        "attention": result.attention,
        "loss/balance": result.balance,
        "loss/z": result.z,
        "time/step": seconds,
        "throughput/tokens_per_second": result.routed_tokens / seconds,
    }


def _announce(
    config: EpochsConfig, run: RunDirectory, task: EpochTask, start: int, last: int, steps_before: int | None
) -> None:
    done = [f"all {last} steps are done: more need more --epochs or --max-steps"] if start >= last else []
    stretched = stretched_rates(config.optimizer, start, steps_before, config.epochs * task.steps_per_epoch)
    remarks: Sequence[str] = (*task.introduction(start), *run.notes, *stretched, *done)
    for remark in remarks:
        print(f"{config.stage_name}: {remark}", flush=True)
