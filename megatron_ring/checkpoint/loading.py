"""Loading checkpoints of any parallel layout into this one."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.fast_files import files_at_once
from megatron_ring.checkpoint.hf_tensors import list_problems
from megatron_ring.checkpoint.manifest import damaged, is_damaged, read_manifest
from megatron_ring.checkpoint.pieces import (
    MASTER,
    Piece,
    has_masters,
    optimizer_parts,
    optimizer_pieces,
    weight_pieces,
)
from megatron_ring.checkpoint.reading import CheckpointReader
from megatron_ring.checkpoint.saving import allocate_moments, random_file
from megatron_ring.config.declarations import SCORE, VOCABULARY_TABLES
from megatron_ring.config.model import ModelConfig
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
    folder: Path, model: RingModel, context: ParallelContext, optimizer: Any = None, shape: ModelConfig | None = None
) -> tuple[int, dict[str, Any]]:
    """Fill model (and optimizer and random states, when an optimizer is given) from a checkpoint of any layout. Everything
    read is compared with its checksum.

    Args:
        shape: of the checkpoint, where the model's was made from it (`ModelOptions.extended`); default: the model's. A score
            that the checkpoint's model has not stays as it is.

    Returns:
        the step it was saved at, and its `extra` values.

    Raises:
        UserError: not a whole checkpoint, a damaged file, another shape, no optimizer state where one is asked for.
    """
    manifest = read_manifest(folder)
    _check_shape(folder, manifest, shape or model.ring_config)
    problem = ""
    try:
        _fill(folder, manifest, model, context, optimizer, shape or model.ring_config)
    except UserError as error:
        problem = str(error)
    problem = next((p for p in collectives.gather_over_world(problem) if p), "")  # one rank's damage is everyone's
    if problem:
        raise UserError(problem)
    return manifest["step"], manifest["extra"]


def _fill(
    folder: Path, manifest: dict[str, Any], model: RingModel, context: ParallelContext, optimizer: Any, shape: ModelConfig
) -> None:
    reader = CheckpointReader(folder)
    pieces = [piece for piece in weight_pieces(model) if piece.key in reader.tensors or not piece.optional]
    if shape.head != model.ring_config.head:
        pieces = [piece for piece in pieces if piece.key != SCORE]
    problems = [f"{key} is missing" for key in sorted({piece.key for piece in pieces} - reader.tensors.keys())]
    for piece in pieces:
        if piece.buffer and piece.key in reader.tensors and reader.shape_of(piece.key) != piece.global_shape:
            problems.append(f"{piece.key} has shape {reader.shape_of(piece.key)}, here {piece.global_shape}")
    if problems:
        raise UserError(f"{folder}: {list_problems(problems)}")
    for name, parameter in model.named_parameters():
        if name in VOCABULARY_TABLES:
            parameter.data.zero_()  # rows behind the vocabulary are in no checkpoint
    if optimizer is not None:
        if "optimizer_step" not in manifest:
            raise UserError(f"{folder}: holds weights but no optimizer state: give it to --init-from")
        allocate_moments(optimizer)
        saved_masters = any(key.startswith(f"optimizer.{MASTER}.") for key in reader.tensors)
        pieces += optimizer_pieces(optimizer, model, masters=saved_masters)
    _read(reader, pieces)
    if optimizer is None:
        return
    if has_masters(optimizer) and not saved_masters:
        optimizer.reload_model_params()  # saved by a run in fp32
    for part in optimizer_parts(optimizer):
        for held in part.optimizer.state.values():
            held["step"].fill_(manifest["optimizer_step"])
    small = ["common.pt", "metadata.json"]
    if manifest["layout"].get("world_size") == context.world_size:
        small.append(random_file(context.rank))
    for name in small:
        if is_damaged(folder, manifest, name):
            raise damaged(folder, [name])
    if random_file(context.rank) in small:
        set_random_state(torch.load(folder / random_file(context.rank), weights_only=True))


def _read(reader: CheckpointReader, pieces: list[Piece]) -> None:
    """Fill every piece: threads share them, each in the order in which they lie on disk."""

    @torch.no_grad()
    def fill(shared: list[Piece]) -> None:
        own = reader.beside()
        try:
            for piece in shared:
                own.fill(piece.key, piece.box, piece.data)
        finally:
            own.close()

    size = sum(piece.data.nbytes for piece in pieces)
    shares: list[list[Piece]] = [[] for _ in range(files_at_once(size))]
    before = 0
    for piece in sorted(pieces, key=lambda piece: reader.place(piece.key, piece.box)):
        shares[min(before * len(shares) // max(1, size), len(shares) - 1)].append(piece)
        before += piece.data.nbytes
    try:
        with ThreadPoolExecutor(len(shares), "checkpoint-part") as threads:
            for _ in threads.map(fill, shares):
                pass
    finally:
        reader.close()
