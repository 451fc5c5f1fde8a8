"""How every stage starts: the shape, the tokenizer, the layout, the run directory, the model with its first weights.

A main calls `resolve`, reads its data, then `open_run` (if it trains) and `open_model`. Tools and tests that need no
tokenizer call `open_model` alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from megatron_ring.checkpoint.folder import checkpoint_folder, instead_of, latest_checkpoint, latest_or_none
from megatron_ring.checkpoint.hf_config import read_config
from megatron_ring.checkpoint.hf_folder import published_ends
from megatron_ring.checkpoint.hf_tensors import PublishedTensors
from megatron_ring.checkpoint.identity import weights_fingerprint
from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.manifest import model_config_of, read_manifest
from megatron_ring.checkpoint.saving import CheckpointSaver
from megatron_ring.checkpoint.weights import TensorSource, fill_from, initialize_weights, new_score
from megatron_ring.config.checks import require
from megatron_ring.config.declarations import SCORE
from megatron_ring.config.metadata import flag_of
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.config.stage import InferenceConfig, ModelOptions, StageConfig, TrainedModelOptions, TrainingConfig
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.model.exact import check_exact
from megatron_ring.model.layer_parts import layer_parts
from megatron_ring.model.ring_model import RingModel, build_model
from megatron_ring.parallel import collectives
from megatron_ring.parallel import context as parallel_context
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import has_cuda
from megatron_ring.run.directory import RunDirectory
from megatron_ring.run.stopping import StopRequest

Precision = Literal["auto", "fp32", "bf16"]
Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True)
class Stage:
    """A process ready to work: where it stands and its part of the model. `extended` makes the model's shape from that of
    the weights it begins with (`ModelOptions.extended`)."""

    context: ParallelContext
    model: RingModel
    shape: ModelConfig
    extended: Callable[[ModelConfig], ModelConfig] = field(default=lambda shape: shape, kw_only=True)


def resolve(config: Config) -> tuple[Config, ModelConfig, RingTokenizer]:
    """What a stage needs to know before it reads its data: the configuration with every default filled in and with the
    checkpoint that `latest` names now in its place, the model's shape, the tokenizer. Connects the processes: rank 0 reads
    `latest` for all of them.

    Raises:
        UserError: there is no such checkpoint, folder, preset or tokenizer; the tokenizer has tokens that the model has not;
            the layout or a step does not fit the model and the number of processes; this machine lacks what is asked for.
    """
    parallel_context.start_processes()
    config, source = config.resolved(), config.weights_folder
    shaped = source
    if source is not None:
        source, shaped = collectives.from_main(functools.partial(_find_first_weights, config, source))
        chosen: dict[str, Any] = {config.weights_setting: source}
        config = replace(config, **chosen)
    shape = config.extended(resolve_shape(config.new_shape, shaped))
    config.check_head(shape)
    world = parallel_context.world_size_from_environment()
    config.parallel.check(shape, world)
    config.check(config.parallel.data(world))
    config.check_model(shape)
    dtype_of(config)
    tokenizer = RingTokenizer.load(config.tokenizer_folder, config.chat_template_file)
    require(
        tokenizer.vocab_size <= shape.vocab_size,
        f"{flag_of(config.tokenizer_setting)} {config.tokenizer_folder}: {tokenizer.vocab_size} tokens, the model has only "
        f"{shape.vocab_size}",
    )
    return config, shape, tokenizer


def _find_first_weights(config: StageConfig, source: Path) -> tuple[Path, Path]:
    """Where the weights lie that a stage starts from, and the folder that tells the model's shape: the same, or, where those
    weights are gone and the run that continues does not need them, its own last checkpoint."""
    try:
        found = find_weights(source)
        return found, found
    except UserError:
        if not isinstance(config, TrainingConfig):
            raise
        own = latest_or_none(config.run_dir / "checkpoints")
        if own is None or config.needs_first_weights(read_manifest(own)["extra"]):
            raise
        return source, own


def other_ends(config: InferenceConfig, tokenizer: RingTokenizer) -> list[str]:
    """What is to be said of tokens that end a response by what a published folder says, and do not here."""
    known = {tokenizer.eos_id, *config.sampling.stop_token_ids}
    others = [token for token in published_ends(config.checkpoint) if token not in known]
    if not others:
        return []
    ids = " ".join(map(str, (*config.sampling.stop_token_ids, *others)))
    return [
        f"{config.checkpoint / 'generation_config.json'} also ends responses at token(s) {', '.join(map(str, others))}; to "
        f"do so here: --sampling.stop-token-ids {ids}"
    ]


def open_run(config: TrainingConfig, content: Mapping[str, str]) -> RunDirectory:
    """The run directory, new or of the same configuration and content; rank 0 writes to it. After `resolve`.

    Args:
        content: fingerprints of the files that the configuration names, but for weights (`RunDirectory.open`).

    Raises:
        UserError: as `RunDirectory.open`. On every process.
    """
    run = RunDirectory(config.run_dir, writes=collectives.is_main())

    def open_here() -> tuple[dict[str, Any], tuple[str, ...], Path | None]:
        source, given = config.weights_folder, dict(content)
        weights = source if source is not None and source.is_dir() else None
        if weights is not None:
            given[config.weights_setting] = weights_fingerprint(weights)
        run.open(config, given, layout_of(config))
        return run.of_checkpoints, run.notes, weights

    run.of_checkpoints, run.notes, run.first_weights = collectives.from_main(open_here)
    return run


def layout_of(config: StageConfig) -> dict[str, int]:
    """How the model is spread, as a checkpoint's manifest has it."""
    return asdict(config.parallel) | {"world_size": parallel_context.world_size_from_environment()}


def open_saver(run: RunDirectory, config: TrainingConfig, context: ParallelContext) -> CheckpointSaver:
    """What saves the run's checkpoints."""
    return CheckpointSaver(
        run.checkpoints, context, config.keep_last, config.async_save, run.saved_note, config.save_optimizer
    )


def next_multiple(every: int, done: int) -> int:
    """The first multiple of `every` above `done`."""
    return (done // every + 1) * every


def open_stop_request(run: RunDirectory, config: TrainingConfig) -> StopRequest:
    """What ends the run early when a signal asks for it."""

    def last_checkpoint() -> str:
        found = latest_or_none(run.checkpoints)
        return f"{found.name} is the last checkpoint" if found else "there is no checkpoint yet"

    return StopRequest(config.grace_seconds, last_checkpoint)


def open_model(options: ModelOptions, shape: ModelConfig, weights: Path | None = None) -> Stage:
    """This process's part of a model, with random weights or those of a checkpoint or Hugging Face folder.

    Raises:
        UserError: as `start_model` and `set_first_weights`.
    """
    stage = start_model(options, shape)
    set_first_weights(stage, weights, options.seed)
    return stage


def start_model(options: ModelOptions, shape: ModelConfig) -> Stage:
    """Set up this process and build its part of the model; its weights are not set.

    Raises:
        UserError: the layout does not fit, the layers' implementation is not there, or `exact` cannot be had.
    """
    dtype = dtype_of(options)
    trained = options if isinstance(options, TrainedModelOptions) else TrainedModelOptions(router=RouterLossConfig(0.0, 0.0))
    context = parallel_context.initialize(options.parallel, shape, options.seed)
    model = build_model(
        shape, context, trained.router, dtype, recompute=trained.recompute, layer_impl=options.layer_impl,
        exact=options.exact,
    )  # fmt: skip
    return Stage(context, model, shape, extended=options.extended)


def resolve_shape(preset: str | None, source: Path | None) -> ModelConfig:
    """The model shape that `--preset` names, or that of the checkpoint or folder of `--init-from` (also: a run's `latest`).

    Raises:
        UserError: neither is given, or there is no such preset, folder or checkpoint.
    """
    if preset is not None:
        return get_preset(preset)
    if source is None:
        raise UserError("give --preset NAME for new weights, or --init-from DIR for existing ones")
    folder = find_weights(source)
    if (folder / "manifest.json").exists():
        return model_config_of(folder)
    return read_config(folder)[0]


def find_weights(source: Path) -> Path:
    """The checkpoint or Hugging Face folder that `source` is or, as a run's `latest`, names now; `UserError` if there is
    none."""
    folder = checkpoint_folder(source)
    named = "" if folder == source else f"{source} names "
    require(folder.is_dir(), f"{named}{folder}: no such checkpoint or Hugging Face folder")
    return folder


def dtype_of(options: ModelOptions) -> torch.dtype:
    """The parameters' dtype. Raises `UserError` where this machine has not the layers' implementation or `exact`."""
    dtype = resolve_dtype(options.precision)
    if options.exact:
        check_exact(options.parallel, dtype, options.layer_impl)
    layer_parts(options.layer_impl, dtype)
    return dtype


def resolve_dtype(precision: Precision) -> torch.dtype:
    """bf16 on CUDA and fp32 on the CPU when "auto"."""
    if precision == "auto":
        return torch.bfloat16 if has_cuda() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def source_shape(stage: Stage, found: ModelConfig) -> ModelConfig:
    """The shape that a checkpoint of the shape `found` must have to begin with: its own, where the model's is made of it."""
    return found if stage.extended(found) == stage.shape else stage.shape


def load_latest(run: RunDirectory, stage: Stage, optimizer: Any, last: int | None) -> tuple[int, dict[str, Any]]:
    """Fill model, optimizer and random states from the run's last whole checkpoint, the one that rank 0 sees.

    Args:
        last: steps of the whole run, after which weights alone are enough; None: those that it had when it was saved.

    Returns:
        the step it was saved at and its `extra` values; 0 and none where there is no checkpoint yet.
    """
    checkpoint = latest_of(run)
    if checkpoint is None:
        return 0, {}
    try:
        manifest = read_manifest(checkpoint)
        last = last if last is not None else manifest["extra"].get("steps")
        done = "optimizer_step" not in manifest and last is not None and manifest["step"] >= last
        return load_checkpoint(checkpoint, stage.model, stage.context, None if done else optimizer)
    except UserError as error:
        raise UserError(f"{error}{instead_of(checkpoint)}") from None


def latest_of(run: RunDirectory) -> Path | None:
    """The run's last whole checkpoint, as rank 0 sees it; all ranks take part."""
    return collectives.from_main(lambda: latest_checkpoint(run.checkpoints))


def set_first_weights(stage: Stage, source: Path | None, seed: int) -> None:
    """Random weights, or those of a checkpoint (also: a run's `latest`, as rank 0 reads it) or a Hugging Face folder.

    Raises:
        UserError: not a checkpoint, or one of another shape.
    """
    if source is None:
        initialize_weights(stage.model, seed)
        return
    folder = collectives.from_main(functools.partial(checkpoint_folder, source))
    if (folder / "manifest.json").exists():
        if stage.shape.head == "score" and stage.context.last_stage:
            stage.model.score.weight.data.copy_(new_score(stage.shape, seed))  # stays where the checkpoint has none
        load_checkpoint(folder, stage.model, stage.context, shape=source_shape(stage, model_config_of(folder)))
        return
    shape, norm_head = read_config(folder)
    require(stage.extended(shape) == stage.shape, f"--init-from {folder}: a model of another shape than --preset")
    published = PublishedTensors(folder, shape, norm_head)
    tensors = published if shape.head == stage.shape.head else _with_score(published, stage.shape, seed)
    fill_from(tensors, stage.model, replace(shape, head=stage.shape.head))
    published.close()
    published.check_finite()


def _with_score(published: TensorSource, shape: ModelConfig, seed: int) -> TensorSource:
    """A language model's tensors, and a score that knows nothing yet."""
    return lambda name: new_score(shape, seed) if name == SCORE else published(name)
