"""Loading checkpoints of any parallel layout into this one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.manifest import damaged, damaged_files, read_manifest
from megatron_ring.checkpoint.saving import training_state
from megatron_ring.checkpoint.sharded import load_optimizer, load_sharded
from megatron_ring.config import ModelConfig
from megatron_ring.errors import UserError
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import set_random_state


def _check_shape(folder: Path, manifest: dict[str, Any], model: ModelConfig) -> None:
    saved = dataclasses.asdict(ModelConfig.from_values(manifest["model"]))
    differing = [f"{k} {saved[k]} (here {v})" for k, v in dataclasses.asdict(model).items() if saved[k] != v]
    if differing:
        raise UserError(f"{folder}: a checkpoint of another shape: {', '.join(differing[:4])}")


def load_checkpoint(
    folder: Path, model: RingModel, context: ParallelContext, optimizer: Any = None
) -> tuple[int, dict[str, Any]]:
    """Fill model (and optimizer and random states, when an optimizer is given) from a checkpoint of any layout. Contents
    of all files are compared with their checksums first; processes share that work.

    Returns:
        the step it was saved at, and its `extra` values.

    Raises:
        UserError: not a whole checkpoint, a damaged file, another shape, no optimizer state where one is asked for.
    """
    manifest = read_manifest(folder)
    _check_shape(folder, manifest, model.ring_config)
    found = damaged_files(folder, manifest, context.rank, context.world_size)
    found = sorted(name for part in collectives.gather_over_world(found) for name in part)
    if found:
        raise damaged(folder, found)
    try:
        state = load_sharded(training_state(model, optimizer, loading=True), folder)
    except KeyError as error:
        if optimizer is None or "optimizer" not in str(error):
            raise
        raise UserError(f"{folder}: holds weights but no optimizer state: give it to --init-from") from None
    result = model.load_state_dict(state["model"], strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("_extra_state")]
    if missing or result.unexpected_keys:
        raise RuntimeError(f"{folder}: loading left out {missing} and did not know {result.unexpected_keys}")
    if optimizer is not None:
        load_optimizer(optimizer, state["optimizer"])
        path = folder / f"random_rank_{context.rank}.pt"
        if manifest["layout"].get("world_size") == context.world_size and path.exists():
            set_random_state(torch.load(path, weights_only=True))
    return manifest["step"], manifest["extra"]
