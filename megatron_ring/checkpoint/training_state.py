"""Whole training states in `checkpoints/step_N/`: weights, optimizer, random states and where the data stands.

Atomic: everything is written to `.step_N.tmp`, made durable, renamed; only then does `latest` name it. A killed or failed
save leaves the previous checkpoint as it was. `manifest.json` says what the checkpoint is and how large its files are.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from megatron.core import __version__ as megatron_version
from torch.distributed.checkpoint.api import CheckpointException

from megatron_ring.checkpoint.sharded import allocate_optimizer_state, load_optimizer, load_sharded, save_sharded
from megatron_ring.config import ModelConfig
from megatron_ring.errors import UserError
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import random_state, set_random_state

OPTIMIZER_FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, checked against the files that are there.

    Raises:
        UserError: not a whole checkpoint.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder}: not a checkpoint (it has no manifest.json)")
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a checkpoint manifest") from None
    for name, size in files.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else None
        if found != size:
            raise UserError(f"{folder / name}: {found if found is not None else 'missing'}, the manifest says {size} bytes")
    return manifest


def model_config_of(folder: Path) -> ModelConfig:
    """Shape of the model that a checkpoint holds."""
    return ModelConfig(**read_manifest(folder)["model"])


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The last whole checkpoint of a run, or None."""
    pointer = checkpoints / "latest"
    if not pointer.exists():
        return None
    return checkpoints / pointer.read_text().strip()


def _check_shape(folder: Path, manifest: dict[str, Any], model: ModelConfig) -> None:
    wanted = dataclasses.asdict(model)
    differing = [f"{k} {manifest['model'].get(k)} (here {v})" for k, v in wanted.items() if manifest["model"].get(k) != v]
    if differing:
        raise UserError(f"{folder}: a checkpoint of another shape: {', '.join(differing[:4])}")


def _state(model: RingModel, optimizer: Any, loading: bool) -> dict[str, Any]:
    weights = model.sharded_state_dict()
    state = {"model": weights}
    if optimizer is not None:
        allocate_optimizer_state(optimizer)
        state["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=OPTIMIZER_FORMAT)
    return state


def save_checkpoint(
    checkpoints: Path, step: int, model: RingModel, optimizer: Any, context: ParallelContext, extra: dict[str, Any],
    keep_last: int | None = None, name: str | None = None,
) -> Path:  # fmt: skip
    """Write `checkpoints/step_<step>` (or `checkpoints/<name>`); all ranks take part.

    Args:
        optimizer: None saves weights alone.
        extra: plain JSON values equal on all ranks (data position, …), returned by `load_checkpoint`.
        keep_last: how many checkpoints to keep (None: all).

    Raises:
        UserError: the disk is full or not writable; the previous checkpoint is intact.
    """
    name = name or f"step_{step}"
    target, work = checkpoints / name, checkpoints / f".{name}.tmp"
    if context.is_main:
        shutil.rmtree(work, ignore_errors=True)
    collectives.barrier()
    problem = ""
    try:
        work.mkdir(parents=True, exist_ok=True)
        collectives.barrier()
        save_sharded(_state(model, optimizer, loading=False), work)
        torch.save(random_state(), work / f"random_rank_{context.rank}.pt")
    except (OSError, RuntimeError, CheckpointException) as error:
        problem = str(getattr(error, "strerror", None) or error).strip().splitlines()[-1]
    problem = next((p for p in collectives.gather_over_world(problem) if p), "")
    if not problem and context.is_main:
        try:
            _finish(work, target, step, model.ring_config, context, extra)
        except OSError as error:
            problem = str(error.strerror or error)
    problem = collectives.broadcast_from_main(problem)
    if problem:
        if context.is_main:
            shutil.rmtree(work, ignore_errors=True)
        before = latest_checkpoint(checkpoints)
        intact = f"{before.name} is intact" if before else "there was none before"
        raise UserError(f"{target}: saving failed: {problem}; {intact}")
    if context.is_main and keep_last:
        _prune(checkpoints, keep_last)
    return target


def _finish(
    work: Path, target: Path, step: int, model: ModelConfig, context: ParallelContext, extra: dict[str, Any]
) -> None:
    files = {path.name: path.stat().st_size for path in sorted(work.iterdir())}
    manifest = {
        "step": step,
        "model": dataclasses.asdict(model),
        "layout": dataclasses.asdict(context.config) | {"world_size": context.world_size},
        "megatron_core": megatron_version,
        "torch": torch.__version__,
        "extra": extra,
        "files": files,
    }
    with open(work / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(target, ignore_errors=True)  # left by a run that was killed before `latest` named it
    os.replace(work, target)
    if target.name == f"step_{step}":
        pointer = target.parent / ".latest.tmp"
        pointer.write_text(target.name + "\n")
        os.replace(pointer, target.parent / "latest")
    directory = os.open(target.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _prune(checkpoints: Path, keep_last: int) -> None:
    found = sorted(checkpoints.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    for path in found[:-keep_last]:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(
    folder: Path, model: RingModel, context: ParallelContext, optimizer: Any = None
) -> tuple[int, dict[str, Any]]:
    """Fill model (and optimizer and random states, when an optimizer is given) from a checkpoint of any layout.

    Returns:
        the step it was saved at, and its `extra` values.

    Raises:
        UserError: not a whole checkpoint, or one of another shape.
    """
    manifest = read_manifest(folder)
    _check_shape(folder, manifest, model.ring_config)
    state = load_sharded(_state(model, optimizer, loading=True), folder)
    model.load_state_dict(state["model"])
    if optimizer is not None:
        load_optimizer(optimizer, state["optimizer"])
        path = folder / f"random_rank_{context.rank}.pt"
        if manifest["layout"]["world_size"] == context.world_size and path.exists():
            set_random_state(torch.load(path, weights_only=True))
    return manifest["step"], manifest["extra"]
