"""Parts of a checkpoint's tensors, read without a model: whatever layout wrote it."""

from __future__ import annotations

import copy
import threading
import zipfile
from math import prod
from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_ring.checkpoint.fast_files import DirectReader, Scratch
from megatron_ring.checkpoint.manifest import damaged, is_damaged, read_manifest
from megatron_ring.checkpoint.safetensors_stream import raw_bytes
from megatron_ring.checkpoint.tensor_rules import Box, Rule
from megatron_ring.errors import UserError

LOCAL_HEADER = b"PK\3\4"  # of a record in a zip archive
FRONT = 4096  # bytes of an archive in which its tensor begins


class CheckpointReader:
    """Reads boxes of the tensors in a sharded checkpoint. The chunk read last is kept, as neighbours are asked for next:
    memory is bounded by one chunk (what one rank held of one tensor) and the box. Everything read is compared with its
    checksum before it is used.

    Raises:
        UserError: not a whole checkpoint, or a damaged file (here, and when reading).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifest = read_manifest(folder)
        self._file: DirectReader | None = None
        self._scratch = Scratch()
        if is_damaged(folder, self._manifest, ".metadata"):
            raise damaged(folder, [".metadata"])
        metadata = FileSystemReader(folder).read_metadata()
        self.tensors = {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
        self._storage = {
            (index.fqn, tuple(index.offset)): at for index, at in metadata.storage_data.items() if index.offset is not None
        }
        self._first, self._one_chunk = self, threading.Lock()
        self._begins: dict[tuple[str, tuple[int, ...]], int | None] = {}  # of `_content`
        self._kept: tuple[tuple[str, tuple[int, ...]], torch.Tensor] | None = None

    def problems(self, rules: list[Rule]) -> list[str]:
        """What keeps the checkpoint from being what `rules` speak of, by name: tensors that it lacks (rows may be more:
        padding), and tensors of the model that no rule speaks of."""
        ours = (name for name in self.tensors if not name.startswith("optimizer."))
        found = [f"{name} has no name in the published layout" for name in sorted(set(ours) - {r.target for r in rules})]
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

    def shape_of(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].size)

    def dtype_of(self, name: str) -> torch.dtype:
        return self.tensors[name].properties.dtype

    def place(self, name: str, box: Box) -> tuple[str, int, int]:
        """Where `box` of tensor `name` begins on disk: file, offset of an archive in it, number of an element in that."""
        for chunk in self.tensors[name].chunks:
            held = Box(tuple(chunk.offsets), tuple(chunk.sizes))
            if (meet := box.meet(held)) is not None:
                at = self._storage[name, held.offset]
                return at.relative_path, at.offset, meet.run_in(held) or 0
        return "", 0, 0

    def read(self, name: str, box: Box) -> torch.Tensor:
        """The part `box` of tensor `name`; valid until the next call.

        Raises:
            UserError: no chunk holds some part of it, or a file is damaged.
        """
        meets = self._meets(name, box)
        if len(meets) == 1:
            return self._chunk(name, meets[0][0])[box.slices(meets[0][0])]
        out = torch.empty(box.size, dtype=self.dtype_of(name))
        for held, meet in meets:
            out[meet.slices(box)] = self._chunk(name, held)[meet.slices(held)]
        return out

    def beside(self) -> CheckpointReader:
        """Another reader of the same checkpoint, for another thread."""
        other = copy.copy(self)
        other._file, other._scratch, other._kept = None, Scratch(), None
        return other

    def fill(self, name: str, box: Box, target: torch.Tensor) -> None:
        """Copy `box` of tensor `name` into `target`, of any device and dtype; without memory for it where it lies in one
        piece on disk and in `target`.

        Raises:
            UserError: as `read`.
        """
        meets = self._meets(name, box)
        for held, meet in meets:
            part, run = target[meet.slices(box)], meet.run_in(held)
            begin = self._content(name, held) if run is not None and part.is_contiguous() else None
            if run is None or begin is None or part.dtype != self.dtype_of(name):
                with self._one_chunk:  # whole chunks take memory: one for all threads
                    part.copy_(self._first.read(name, meet))
                continue
            at, size = self._storage[name, held.offset], part.dtype.itemsize
            self._load(at.relative_path, part.view(-1).view(torch.uint8), at.offset + begin + run * size)

    def _load(self, file: str, target: torch.Tensor, offset: int) -> None:
        """Fill `target` (uint8) from a file. Raises `UserError` where it is damaged, ends before that, or cannot be read."""
        try:
            read = self._open(file).read_into(target, offset)
        except ValueError:
            raise damaged(self.folder, [file]) from None
        except OSError as error:
            raise UserError(f"{self.folder / file}: cannot be read: {error.strerror}") from None
        if read != len(target):
            raise UserError(f"{self.folder / file}: ends within a tensor")

    def _content(self, name: str, held: Box) -> int | None:
        """Where in a chunk's archive its bytes begin; None where that is not told at its front."""
        key = (name, held.offset)
        if key not in self._begins:
            at = self._storage[key]
            front = torch.empty(min(at.length, FRONT), dtype=torch.uint8)
            self._load(at.relative_path, front, at.offset)
            begin = stored_content(bytes(raw_bytes(front)))
            end = (begin or 0) + prod(held.size) * self.dtype_of(name).itemsize
            self._begins[key] = begin if end <= at.length else None
        return self._begins[key]

    def _open(self, name: str) -> DirectReader:
        path = self.folder / name
        if self._file is None or self._file.path != path:
            self.close()
            self._file = DirectReader(path, self._manifest["files"][name]["crc32"])
        return self._file

    def _meets(self, name: str, box: Box) -> list[tuple[Box, Box]]:
        """The chunks that hold parts of a box, each with its part. Raises `UserError` where some part is in none."""
        chunks = [Box(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in self.tensors[name].chunks]
        meets = [(held, meet) for held in chunks if (meet := box.meet(held)) is not None]
        if sum(prod(meet.size) for _, meet in meets) != prod(box.size):
            raise UserError(f"{self.folder}: {name} is not whole in this checkpoint")
        return meets

    def _chunk(self, name: str, box: Box) -> torch.Tensor:
        key = (name, box.offset)
        if self._kept is None or self._kept[0] != key:
            at = self._storage[key]
            archive = self._scratch.room(at.length)
            self._load(at.relative_path, archive, at.offset)
            start, size = saved_storage(raw_bytes(archive))
            content = archive[start : start + size]
            self._kept = (key, content.view(self.dtype_of(name)).view(box.size))
        return self._kept[1]

    def close(self) -> None:
        """Close the file read last."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _Window:
    """A file-like view of memory."""

    def __init__(self, memory: memoryview) -> None:
        self._memory, self._at = memory, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._memory))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = len(self._memory) if size < 0 else min(len(self._memory), self._at + size)
        content = bytes(self._memory[self._at : end])
        self._at = end
        return content

    def seekable(self) -> bool:
        return True


def stored_content(front: bytes) -> int | None:
    """Where the bytes of the one tensor begin in an archive of torch.save, told by its first bytes: each record lies behind
    its description. None where that of the tensor is not there."""
    at = front.find(LOCAL_HEADER)
    while at >= 0 and at + 30 <= len(front):
        method, name, extra = (int.from_bytes(front[at + i : at + i + 2], "little") for i in (8, 26, 28))
        if front[at + 30 : at + 30 + name].endswith(b"/data/0"):
            return at + 30 + name + extra if method == zipfile.ZIP_STORED else None
        at = front.find(LOCAL_HEADER, at + 4)
    return None


def saved_storage(archive: memoryview) -> tuple[int, int]:
    """Where the bytes of the one tensor lie that torch.save has put into an archive (zip, stored): start and size. Nothing
    is unpickled: what the tensor is stands in the checkpoint's own description.

    Raises:
        RuntimeError: another kind of archive.
    """
    with zipfile.ZipFile(_Window(archive)) as file:  # type: ignore[arg-type]
        found = [item for item in file.infolist() if item.filename.endswith("/data/0")]
    if len(found) != 1 or found[0].compress_type != zipfile.ZIP_STORED:
        raise RuntimeError("not the archive of one tensor")
    at = found[0].header_offset
    name, extra = (int.from_bytes(archive[at + i : at + i + 2], "little") for i in (26, 28))
    return at + 30 + name + extra, found[0].file_size
