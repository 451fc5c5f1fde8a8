"""A pretraining run: what lives from step to step, what of it checkpoints hold, going on from one, going back to one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.manifest import NAME as MANIFEST
from megatron_ring.checkpoint.manifest import model_config_of
from megatron_ring.checkpoint.saving import CheckpointSaver
from megatron_ring.config.checks import require
from megatron_ring.config.pretrain import CorpusConfig, PretrainConfig
from megatron_ring.corpus.blends import Place
from megatron_ring.corpus.mixing import TESTED, VALIDATED, Corpora, steps_left
from megatron_ring.corpus.stream import CorpusStream, HeldOut, held_out
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.run.alarms import Alarm
from megatron_ring.run.directory import RunDirectory
from megatron_ring.run.stage import Stage, latest_of, load_latest, source_shape
from megatron_ring.run.watch import Watch
from megatron_ring.training.trainer import Trainer


@dataclass
class PretrainState:
    """What lives from step to step. `steps`: of the whole run; `byte_counts`: of what validations measure, by name."""

    config: PretrainConfig
    stage: Stage
    directory: RunDirectory
    tokenizer: RingTokenizer
    trainer: Trainer
    watch: Watch
    stream: CorpusStream
    validated: list[HeldOut]
    tested: list[HeldOut]
    steps: int = 0
    tokens: int = 0
    byte_counts: dict[str, int] = field(default_factory=dict)


def open_state(
    config: PretrainConfig, stage: Stage, directory: RunDirectory, tokenizer: RingTokenizer, corpora: Corpora
) -> PretrainState:
    """A run at its beginning. All ranks take part."""
    context, data, cache = stage.context, config.data, directory.path / "data_index"
    blend = corpora.blend(data.sequence_length, one_epoch=config.steps is None)
    stream = CorpusStream(
        corpora, data, blend, tokenizer, config.seed, cache, context.data_rank, context.data_size, config.sizes
    )
    validated, tested = (
        held_out(corpora, data, part, tokenizer, config.seed, config.validation_samples, cache)
        for part in (VALIDATED, TESTED)
    )
    stage.model.router_losses.counts_loads = True
    trainer, watch = Trainer(stage.model, context, config.optimizer), Watch(config.alarms, speaks=context.is_main)
    return PretrainState(config, stage, directory, tokenizer, trainer, watch, stream, validated, tested)


def save(run: PretrainState, saver: CheckpointSaver, step: int, last: bool) -> None:
    """Save the state after `step` steps, the last of this process or not. All ranks take part."""
    extra = {
        "corpus": run.stream.place.to_json() | order_of(run.config),
        "tokens": run.tokens,
        "steps": run.steps,
        "next_lr": run.config.optimizer.lr_at(step, run.steps),
        "watch": run.watch.state_dict(),
        **run.directory.of_checkpoints,
    }
    saver.save(step, run.stage.model, run.trainer.optimizer, extra, last=last)


def order_of(config: PretrainConfig) -> dict[str, Any]:
    """What the numbers of a corpus's sequences depend on, besides the corpus."""
    data: CorpusConfig = config.data
    split = [data.split[0], 0.0 if data.validation else data.split[1], data.split[2]]
    return {"sequence_length": data.sequence_length, "seed": config.seed, "split": split}


def restore(run: PretrainState) -> tuple[int, list[str]]:
    """Go on from the run's last whole checkpoint, or begin as --init-state says. All ranks take part.

    Returns:
        the steps done, and what is to be said of it.

    Raises:
        UserError: the corpora do not last for the run's steps.
    """
    start, extra = load_latest(run.directory, run.stage, run.trainer.optimizer, run.config.steps)
    remarks: list[str] = []
    if extra:
        run.tokens = extra["tokens"]
        run.watch.load_state_dict(extra["watch"])
        run.stream.seek(Place.from_json(_place_in(extra)))
        remarks += changed_blend(run.stream)
    elif run.config.init_state == "all":
        remarks += _take_state(run)
    remarks += _count_steps(run, start)
    optimizer, planned = run.config.optimizer, extra.get("next_lr")
    if planned is not None and start < run.steps and (now := optimizer.lr_at(start, run.steps)) != planned:
        remarks.append(f"in step {start + 1:,} the learning rate ({optimizer.schedule}) is {now:.4g} where it was to be "
                       f"{planned:.4g}")  # fmt: skip
    run.directory.start_logging(start)
    return start, remarks


def roll_back(run: PretrainState, alarms: list[Alarm]) -> int:
    """Go back to the last whole checkpoint, on with sequences that no step has seen; the steps done there. All ranks take
    part. What is being saved must be whole."""
    checkpoint = latest_of(run.directory)
    assert checkpoint is not None
    start, extra = load_checkpoint(checkpoint, run.stage.model, run.stage.context, run.trainer.optimizer)
    run.tokens = extra["tokens"]
    run.watch.rolled_back(alarms, extra["watch"], start)
    _count_steps(run, start)
    run.directory.start_logging(start)
    return start


def changed_blend(stream: CorpusStream) -> list[str]:
    """Corpora that come to a run or leave it."""
    read, now = stream.place.read, {one.source.key: name for one, name in zip(stream.sources, stream.names, strict=True)}
    before = {key for key, _ in stream.place.shares} | set(read)
    new = [name for key, name in now.items() if key not in before]
    remarks = [f"new in the blend: {', '.join(new)}; every other corpus goes on where it stood"] if new else []
    if gone := [key for key in before if key not in now]:
        sequences = sum(read.get(key, 0) for key in gone)
        remarks.append(f"{len(gone)} corpora with {sequences:,} sequences read so far are no longer in the blend; put back, "
                       f"they would go on where they stood")  # fmt: skip
    return remarks


def _place_in(extra: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in dataclasses.fields(Place)}
    return {name: value for name, value in extra["corpus"].items() if name in names}


def _take_state(run: PretrainState) -> list[str]:
    """The optimizer's state and the place in the corpora, of the checkpoint of --init-from."""
    folder = run.directory.first_weights
    require(folder is not None and (folder / MANIFEST).exists(), f"--init-state all: {folder} is no checkpoint")
    assert folder is not None
    model, context = run.stage.model, run.stage.context
    shape = source_shape(run.stage, model_config_of(folder))
    _, extra = load_checkpoint(folder, model, context, run.trainer.optimizer, shape)
    if "corpus" not in extra:
        raise UserError(f"--init-state all: {folder} is no checkpoint of pretraining, it has no place in corpora")
    now, before = order_of(run.config), {name: extra["corpus"][name] for name in order_of(run.config)}
    if now != before:
        changed = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in now if now[name] != before[name])
        return [f"the corpora begin anew, their sequences are others than those of {folder} ({changed})"]
    run.stream.seek(Place.from_json(_place_in(extra)))
    return [f"the corpora go on from {folder}, after {run.stream.place.samples:,} sequences", *changed_blend(run.stream)]


def _count_steps(run: PretrainState, start: int) -> list[str]:
    """The steps of the whole run; what is to be said where the corpora end before. Raises `UserError` where they do not say,
    or end before a new run does."""
    stream, asked = run.stream, run.config.steps
    left = steps_left(stream.blend, stream.place, stream.config)
    require(
        asked is not None or left is not None,
        "--steps: give the steps of the run; without weights, or with `epochs` for each corpus of a blend file, they are "
        "those of the epochs",
    )
    end = None if left is None else start + left
    run.steps = asked if asked is not None else end or start
    remarks = []
    if end is not None and end < run.steps:
        said = f"--steps {run.steps:,}: the epochs of the blend end after {end:,}; give more epochs, or fewer steps"
        require(start > 0, said)
        remarks, run.steps = [said], end
    run.config.check_steps(run.steps)
    return remarks
