"""Pieces on disk, in torch's distributed-checkpoint format.

Saving has two halves. `stage` (all ranks together) agrees on who writes what and copies it to host memory; `Staged.write`
then needs neither the device nor the other ranks, so that it can run while training goes on.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystem, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_ring.checkpoint.fast_files import DirectWriter, as_bytes, files_at_once
from megatron_ring.checkpoint.pieces import Piece
from megatron_ring.checkpoint.tensor_rules import Box, Shape
from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import synchronize
from megatron_ring.parallel.locked_room import LockedRoom


class _SummingFileSystem(FileSystem):
    """torch's file system with our writer; remembers checksums of the files written."""

    def __init__(self) -> None:
        self.checksums: dict[str, list[str]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with DirectWriter(Path(path)) as file:
            yield file
        self.checksums[Path(path).name] = file.checksums


class ShardWriter(dcp.FileSystemWriter):
    """Writes durable files, `PREFIX0.distcp` and on, with the items of a plan.

    Args:
        several: a plan with much in it becomes several files, written beside each other: one file is written no faster than
            one core copies and sums. Contents are then asked for by several threads at once.
    """

    def __init__(self, folder: Path, several: bool = False) -> None:
        super().__init__(folder)
        self.fs = self._summing = _SummingFileSystem()
        self._several = several

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the plan's items, whose contents are on the host. Raises OSError or RuntimeError where the disk does not
        take them."""

        def write(numbered: tuple[int, list[WriteItem]]) -> list[WriteResult]:
            number, items = numbered
            return self._write_file(f"{plan.storage_data.prefix}{number}.distcp", items, planner)

        # Every block has our checksum: a second one, by torch, of every tensor is left out, in these threads only. Before
        # torch kept that setting by thread it holds for what the process saves later, which is as readable without.
        files = shared_out(plan.items, files_at_once(sum(map(size_of, plan.items))) if self._several else 1)
        with ThreadPoolExecutor(len(files), "checkpoint-file", torch.serialization.set_crc32_options, (False,)) as threads:
            written = [result for results in threads.map(write, enumerate(files)) for result in results]
        done: Future[list[WriteResult]] = Future()
        done.set_result(written)
        return done

    def _write_file(self, name: str, items: Sequence[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        results = []
        with DirectWriter(Path(self.path) / name) as file:
            for item in items:
                begin, content = file.tell(), planner.resolve_data(item)
                assert isinstance(content, torch.Tensor)
                archive(content, file)
                size = file.tell() - begin
                results.append(WriteResult(item.index, size, _StorageInfo(name, begin, size)))
        self._summing.checksums[name] = file.checksums
        return results

    @property
    def checksums(self) -> dict[str, list[str]]:
        """Checksums of every file written so far, by name (torch renames `.metadata.tmp` to `.metadata`)."""
        return {name.removesuffix(".tmp"): crc for name, crc in self._summing.checksums.items()}


def size_of(item: WriteItem) -> int:
    """Bytes of an item's content."""
    assert item.tensor_data is not None
    return prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def shared_out(items: Sequence[WriteItem], count: int) -> list[list[WriteItem]]:
    """The items in so many files of about equal size, each in the given order."""
    files: list[list[int]] = [[] for _ in range(count)]
    sizes = [0] * count
    for number in sorted(range(len(items)), key=lambda number: -size_of(items[number])):
        smallest = sizes.index(min(sizes))
        files[smallest].append(number)
        sizes[smallest] += size_of(items[number])
    return [[items[number] for number in sorted(file)] for file in files]


class _ContentFrom:
    """A stream that puts the bytes of `tensor`, of any device, where an archive has those of `stand_in`: pages of it that
    nobody has touched take no memory, and neither does a tensor that is copied block by block."""

    def __init__(self, file: DirectWriter, tensor: torch.Tensor) -> None:
        self._file = file
        self._source = tensor.detach().contiguous().view(-1).view(torch.uint8)
        self.missing = len(self._source)
        untouched = torch.frombuffer(mmap.mmap(-1, self.missing), dtype=torch.uint8) if self.missing else self._source
        self.stand_in = untouched.view(tensor.dtype).view(tensor.shape)

    def write(self, data: Any) -> int:
        found = as_bytes(data)
        begin = found.ctypes.data - self.stand_in.data_ptr()
        if not 0 <= begin <= begin + len(found) <= len(self._source) or not len(found):
            return self._file.write(data)
        self.missing -= len(found)
        return self._file.write_tensor(self._source[begin : begin + len(found)])

    def flush(self) -> None:
        """Nothing, as of the file itself."""


def archive(tensor: torch.Tensor, file: DirectWriter) -> None:
    """`torch.save`, straight from the tensor's device.

    Raises:
        RuntimeError: torch writes in another way than it did (a bug).
    """
    stream: Any = _ContentFrom(file, tensor)
    torch.save(stream.stand_in, stream)
    if stream.missing:
        raise RuntimeError(f"torch.save left out {stream.missing} bytes of a tensor")


def write_item(key: str, global_shape: Shape, box: Box, dtype: torch.dtype) -> WriteItem:
    """Announce that `box` of tensor `key` will be written."""
    offset, size = torch.Size(box.offset), torch.Size(box.size)
    return WriteItem(
        index=MetadataIndex(key, offset),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offset, size), properties=TensorProperties(dtype=dtype), size=torch.Size(global_shape)
        ),
    )


def plan_files(writer: ShardWriter, plans: Sequence[SavePlan]) -> tuple[list[SavePlan], Metadata]:
    """Give each plan a file, and describe the whole.

    Raises:
        RuntimeError: the boxes of a tensor do not add up to it (a bug).
    """
    named, metadata = create_default_global_save_plan(list(plans))
    for key, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        if sum(prod(chunk.sizes) for chunk in tensor.chunks) != prod(tensor.size):
            raise RuntimeError(f"{key}: what is saved does not add up to the whole tensor")
    return writer.prepare_global_plan(named), metadata


def write_saved(value: Any, path: Path) -> None:
    """`torch.save` of something small; raises `OSError` where the disk is full, which torch itself does not tell."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(buffer.getvalue())


def write_plain_files(folder: Path) -> None:
    """What megatron-core's own loader looks for besides the tensors."""
    write_saved({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


class _Contents(dcp.DefaultSavePlanner):
    """Hands out contents that are known already."""

    def __init__(self, contents: dict[MetadataIndex, torch.Tensor]) -> None:
        super().__init__()
        self._contents = contents

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self._contents[write_item.index]


@dataclass
class Staged:
    """What one rank will write, to one file or several, from host memory or from the live tensors. `metadata` is of the
    whole checkpoint, on the main rank only."""

    writer: ShardWriter
    plan: SavePlan
    contents: dict[MetadataIndex, torch.Tensor]
    metadata: Metadata | None

    def write(self) -> list[WriteResult]:
        """Write this rank's files. Raises OSError or RuntimeError when the disk does not take it."""
        results = self.writer.write_data(self.plan, _Contents(self.contents)).value()
        assert isinstance(results, list)
        return results

    def finish(self, results: list[list[WriteResult]]) -> None:
        """Write where everything is. The main rank only, with every rank's results in rank order."""
        assert self.metadata is not None
        self.writer.finish(self.metadata, results)
        write_plain_files(Path(self.writer.path))


class Staging:
    """Copies pieces to host memory, which it keeps from one save to the next (page-locked for a CUDA device), as it keeps
    the agreement on who writes what."""

    def __init__(self) -> None:
        self._buffers: dict[MetadataIndex, torch.Tensor] = {}
        self._room: LockedRoom | None = None
        self._agreed: dict[bool, tuple[SavePlan, Metadata | None]] = {}

    def stage(self, pieces: list[Piece], folder: Path, with_optimizer: bool, copy: bool = True) -> Staged:
        """Plan to write `pieces` into the existing `folder` and copy them. All ranks take part; the pieces' memory may
        change afterwards. `with_optimizer` tells apart the two kinds of lists that a run brings. `copy`: False takes no
        host memory, and the pieces' memory stays as it is until all is written."""
        writer = ShardWriter(folder, several=True)
        mine = [piece for piece in pieces if piece.saved_here]
        if with_optimizer not in self._agreed:
            self._agreed[with_optimizer] = _agree(writer, mine)
        plan, metadata = self._agreed[with_optimizer]
        if not copy:
            synchronize()
            return Staged(writer, plan, {item.index: p.data for item, p in zip(plan.items, mine, strict=True)}, metadata)
        if self._room is not None:
            self._room.wait()
        contents = {item.index: self._copy(item.index, piece.data) for item, piece in zip(plan.items, mine, strict=True)}
        synchronize()
        return Staged(writer, plan, contents, metadata)

    def reserve(self, pieces: list[Piece]) -> None:
        """Begin to get the host memory that `pieces` of a CUDA device will take; the first `stage` waits for the rest."""
        sizes = [piece.data.nbytes for piece in pieces if piece.saved_here and piece.data.is_cuda]
        if self._room is None and not self._buffers and sizes:
            self._room = LockedRoom(sizes)

    def _copy(self, index: MetadataIndex, tensor: torch.Tensor) -> torch.Tensor:
        held = self._buffers.get(index)
        if held is None:
            held = None if self._room is None else self._room.take(tensor)
            if held is None:
                held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[index] = held
        return held.copy_(tensor, non_blocking=True)


def _agree(writer: ShardWriter, mine: list[Piece]) -> tuple[SavePlan, Metadata | None]:
    """This rank's plan, and on the main rank the description of the whole."""
    items = [write_item(piece.key, piece.global_shape, piece.box, piece.data.dtype) for piece in mine]
    everyone, plans, metadata = collectives.gather_to_main(SavePlan(items)), None, None
    if everyone is not None:
        plans, metadata = plan_files(writer, everyone)
    return collectives.scatter_from_main(plans), metadata
