"""How every stage starts: the layout, the model's shape, its first weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_ring.checkpoint.hf_config import read_config
from megatron_ring.checkpoint.hf_tensors import PublishedTensors
from megatron_ring.checkpoint.loading import load_checkpoint
from megatron_ring.checkpoint.manifest import model_config_of
from megatron_ring.checkpoint.saving import checkpoint_folder
from megatron_ring.checkpoint.weights import fill_from, initialize_weights
from megatron_ring.config.model import ModelConfig
from megatron_ring.config.optimizer import RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.errors import UserError
from megatron_ring.model.exact import check_exact
from megatron_ring.model.layer import Recompute
from megatron_ring.model.layer_parts import LayerImpl
from megatron_ring.model.ring_model import RingModel, build_model
from megatron_ring.parallel import collectives
from megatron_ring.parallel import context as parallel_context
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import has_cuda

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Stage:
    """A process ready to work: where it stands and its part of the model, weights not yet set."""

    context: ParallelContext
    model: RingModel
    shape: ModelConfig


def resolve_shape(preset: str | None, source: Path | None) -> ModelConfig:
    """The model shape that `--preset` names, or that of the checkpoint or folder of `--init-from` (also: a run's `latest`).

    Raises:
        UserError: neither is given, or there is no such preset, folder or checkpoint.
    """
    if preset is not None:
        return get_preset(preset)
    if source is None:
        raise UserError("give --preset NAME for new weights, or --init-from DIR for existing ones")
    folder = checkpoint_folder(source)
    if not folder.is_dir():
        named = "" if folder == source else f"{source} names "
        raise UserError(f"{named}{folder}: no such checkpoint or Hugging Face folder")
    if (folder / "manifest.json").exists():
        return model_config_of(folder)
    return read_config(folder)[0]


def resolve_dtype(precision: Precision) -> torch.dtype:
    """bf16 on CUDA and fp32 on the CPU when "auto"."""
    if precision == "auto":
        return torch.bfloat16 if has_cuda() else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def start_stage(
    shape: ModelConfig,
    parallel: ParallelConfig,
    router: RouterLossConfig,
    seed: int,
    precision: Precision,
    layer_impl: LayerImpl = "native",
    recompute: Recompute = "none",
    exact: bool = False,
) -> Stage:
    """Set up this process and build its part of the model.

    Raises:
        UserError: the layout does not fit, the layers' implementation is not there, or `exact` cannot be had.
    """
    dtype = resolve_dtype(precision)
    if exact:
        check_exact(parallel, dtype, layer_impl)
    context = parallel_context.initialize(parallel, shape, seed)
    model = build_model(shape, context, router, dtype, recompute=recompute, layer_impl=layer_impl, exact=exact)
    return Stage(context, model, shape)


def set_first_weights(stage: Stage, source: Path | None, seed: int) -> None:
    """Random weights, or those of a checkpoint (also: a run's `latest`) or a Hugging Face folder.

    Raises:
        UserError: not a checkpoint, or one of another shape.
    """
    if source is None:
        initialize_weights(stage.model, seed)
        return
    source = collectives.gather_over_world(checkpoint_folder(source))[0]  # a run may go on and rename `latest` meanwhile
    if (source / "manifest.json").exists():
        load_checkpoint(source, stage.model, stage.context)
    else:
        shape, norm_head = read_config(source)
        if shape != stage.shape:
            raise UserError(f"--init-from {source}: a model of another shape than --preset")
        published = PublishedTensors(source, shape, norm_head)
        fill_from(published, stage.model)
        published.close()
        published.check_finite()
