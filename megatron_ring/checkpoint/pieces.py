"""What this process holds of the model and of its optimizer, as boxes of global tensors.

A piece is a view of live memory with its place in a global tensor, so that saving is reading pieces and loading is writing
them, under any layout, without a collective. The distributed optimizer of megatron-core gives each data-parallel rank a flat
range of each local weight; such a range is a few boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_ring.checkpoint.tensor_rules import Box, Shape
from megatron_ring.config.declarations import VOCABULARY_TABLES
from megatron_ring.model.ring_model import RingModel

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "fp32_param"


@dataclass(frozen=True)
class Piece:
    """`box` of the global tensor `key`, held in `data` (a view of that shape). `saved_here`: of the processes that hold the
    same, this one saves it. `buffer`: no parameter; `optional`: older checkpoints may lack it, see `buffers.py`."""

    key: str
    global_shape: Shape
    box: Box
    data: torch.Tensor
    saved_here: bool
    buffer: bool = False
    optional: bool = False


@dataclass(frozen=True)
class _Weight:
    """A piece of a weight, and where it lies in the memory that the weight has as a parameter: elements start to end."""

    piece: Piece
    start: int
    end: int
    one_of_data_ranks: bool


def persistent_buffers(model: torch.nn.Module) -> dict[torch.Tensor, bool]:
    """The buffers that checkpoints carry, and whether each may be missing in an older one."""
    return {
        buffer: name in getattr(module, "optional_buffers", ())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def _weights(model: RingModel) -> Iterator[_Weight]:
    """Every weight and buffer of this process. Rows of the vocabulary that stand for no token are left out.

    Raises:
        RuntimeError: a module's own `sharded_state_dict` leaves out one of its buffers (a bug).
    """
    described = model.sharded_state_dict()
    buffers = persistent_buffers(model)
    left = dict(buffers)
    apply_factories(described)
    for item in nested_values(described):
        if not isinstance(item, ShardedTensor):
            continue
        data, offset, shape = item.data.detach(), tuple(item.global_offset), tuple(item.global_shape)
        if item.key in VOCABULARY_TABLES:
            vocabulary = model.ring_config.vocab_size
            data, shape = data[: max(0, vocabulary - offset[0])], (vocabulary, *shape[1:])
        if not data.numel():
            continue
        replica = item.replica_id if isinstance(item.replica_id, tuple) else (item.replica_id,)
        optional = buffers.get(item.data)
        left.pop(item.data, None)
        box = Box(offset, tuple(data.shape))
        piece = Piece(item.key, shape, box, data, not any(replica), optional is not None, bool(optional))
        start = data.storage_offset()
        yield _Weight(piece, start, start + data.numel(), not any(replica[:-1]))
    if left:
        shapes = ", ".join(str(tuple(buffer.shape)) for buffer in left)
        raise RuntimeError(f"persistent buffers of shape {shapes} are described by no sharded_state_dict")


def weight_pieces(model: RingModel) -> list[Piece]:
    """The weights and persistent buffers of this process."""
    return [weight.piece for weight in _weights(model)]


def optimizer_parts(optimizer: Any) -> list[Any]:
    """The distributed optimizers (of dense and of expert weights) that megatron-core chains."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if hasattr(part, "gbuf_ranges")]


def optimizer_pieces(optimizer: Any, model: RingModel, masters: bool) -> list[Piece]:
    """Adam's moments of the weights that this process updates, under `optimizer.exp_avg.KEY`, `optimizer.exp_avg_sq.KEY`.

    Args:
        masters: also the fp32 weights themselves, under `optimizer.fp32_param.KEY`.
    """
    by_memory: dict[int, list[_Weight]] = {}
    for weight in _weights(model):
        by_memory.setdefault(weight.piece.data.untyped_storage().data_ptr(), []).append(weight)
    pieces = []
    for part in optimizer_parts(optimizer):
        for parameter in part.model_param_gbuf_map:
            held = part._get_model_param_range_map(parameter)["param"]
            states = part._get_main_param_and_optimizer_states(parameter)
            first = parameter.storage_offset() + held.start
            tensors = {name: states[name].detach() for name in MOMENTS}
            if masters:
                tensors[MASTER] = states["param"].detach()
            for weight in by_memory[parameter.untyped_storage().data_ptr()]:
                low, high = max(first, weight.start), min(first + held.size, weight.end)
                inside = parameter.storage_offset() <= weight.start < parameter.storage_offset() + parameter.numel()
                if low >= high or not inside:
                    continue
                whole = weight.piece
                for relative, at in flat_boxes(low - weight.start, high - weight.start, whole.box.size):
                    begin = weight.start + at - first
                    offset = tuple(a + b for a, b in zip(whole.box.offset, relative.offset, strict=True))
                    for name, tensor in tensors.items():
                        data = tensor[begin : begin + prod(relative.size)].view(relative.size)
                        box = Box(offset, relative.size)
                        key = f"optimizer.{name}.{whole.key}"
                        pieces.append(Piece(key, whole.global_shape, box, data, weight.one_of_data_ranks))
    return pieces


def has_masters(optimizer: Any) -> bool:
    """Whether the optimizer keeps fp32 weights besides the model's (for a model in bf16)."""
    parameters = (parameter for part in optimizer_parts(optimizer) for parameter in part.model_param_gbuf_map)
    return any(parameter.dtype != torch.float32 for parameter in parameters)


def flat_boxes(low: int, high: int, shape: Shape) -> Iterator[tuple[Box, int]]:
    """The elements low … high-1 of a row-major tensor as boxes, each with its first element's number: whole rows in the
    middle, and what begins and ends within a row."""
    if low >= high:
        return
    if len(shape) == 1:
        yield Box((low,), (high - low,)), low
        return
    row = prod(shape[1:])
    first, last = -(-low // row), high // row  # whole rows
    if first >= last:
        borders = [low, *([first * row] if low < first * row < high else []), high]
    else:
        borders = sorted({low, first * row, last * row, high})
    for begin, end in pairwise(borders):
        number = begin // row
        if begin % row == 0 and end % row == 0:
            yield Box((number,) + (0,) * (len(shape) - 1), ((end - begin) // row, *shape[1:])), begin
            continue
        for inner, at in flat_boxes(begin - number * row, end - number * row, shape[1:]):
            yield Box((number, *inner.offset), (1, *inner.size)), number * row + at
