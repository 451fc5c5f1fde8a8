"""Parts of a checkpoint's tensors, read without a model: whatever layout wrote it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_ring.checkpoint.tensor_rules import Box, Rule
from megatron_ring.errors import UserError


class CheckpointReader:
    """Reads boxes of the tensors in a sharded checkpoint. The chunk read last is kept, as neighbours are asked for next:
    memory is bounded by one chunk (what one rank held of one tensor) and the box."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        metadata = FileSystemReader(folder).read_metadata()
        self.tensors = {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
        self._storage = {(index.fqn, tuple(index.offset)): at for index, at in metadata.storage_data.items() if index.offset}
        self._kept: tuple[tuple[str, tuple[int, ...]], torch.Tensor] | None = None

    def problems(self, rules: list[Rule]) -> list[str]:
        """What the checkpoint lacks of the tensors that `rules` speak of, by name; rows may be more (padding)."""
        found = []
        for name, shape in {rule.target: rule.target_shape for rule in rules}.items():
            if name not in self.tensors:
                found.append(f"{name} is missing")
                continue
            size, chunks = tuple(self.tensors[name].size), self.tensors[name].chunks
            if size[1:] != shape[1:] or size[0] < shape[0]:
                found.append(f"{name} has shape {size}, expected {shape}")
            elif sum(prod(chunk.sizes) for chunk in chunks) != prod(size):
                found.append(f"{name} is not whole")
        return found

    def dtype_of(self, name: str) -> torch.dtype:
        return self.tensors[name].properties.dtype

    def read(self, name: str, box: Box) -> torch.Tensor:
        """The part `box` of tensor `name`, in memory of its own.

        Raises:
            UserError: no chunk holds some part of it.
        """
        out = torch.empty(box.size, dtype=self.dtype_of(name))
        filled = 0
        for chunk in self.tensors[name].chunks:
            held = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            meet = box.meet(held)
            if meet is not None:
                out[meet.slices(box)] = self._chunk(name, held)[meet.slices(held)]
                filled += prod(meet.size)
        if filled != out.numel():
            raise UserError(f"{self.folder}: {name} is not whole in this checkpoint")
        return out

    def _chunk(self, name: str, box: Box) -> torch.Tensor:
        key = (name, box.offset)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # free before taking more
            at = self._storage[key]
            with open(self.folder / at.relative_path, "rb") as file:
                view: Any = _create_file_view(file, at.offset, at.length)
                self._kept = (key, torch.load(view, map_location="cpu", weights_only=True))
        return self._kept[1]
