"""safetensors files, one tensor at a time: memory stays bounded by the largest tensor, however large the file.

The safetensors library maps whole files for reading, which counts as memory of the process, and writes whole files from
memory. The format: 8 bytes little-endian length of the header, the header as JSON (name -> dtype, shape, begin and end
behind the header), the tensors' bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.fast_files import DirectReader, DirectWriter, Scratch
from megatron_ring.checkpoint.hf_config import no_duplicates
from megatron_ring.errors import UserError

DTYPES = {
    "BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16, "F64": torch.float64, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # bytes, the format's own limit


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of the CPU."""
    flat: Any = tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else bytearray()
    return memoryview(flat)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: bytes begin to end of `file`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    def read(self, file: DirectReader | None = None, scratch: Scratch | None = None) -> torch.Tensor:
        """The tensor. `file`: this file, open already; `scratch`: memory to put it into (default: of its own)."""
        room = (scratch or Scratch()).room(self.end - self.begin)
        opened = file or DirectReader(self.file)
        try:
            if opened.read_into(room, self.begin) != room.numel():
                raise UserError(f"{self.file}: ends within {self.name}")
        finally:
            if file is None:
                opened.close()
        return room.view(self.dtype).view(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file by name, in the order of their bytes.

    Raises:
        UserError: not a whole safetensors file: truncated, a tensor named twice, overlapping or unknown contents.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, LARGEST_HEADER):
                raise ValueError("truncated, or not a safetensors file")
            header = json.loads(file.read(length), object_pairs_hook=no_duplicates)
        start = 8 + length
        found = []
        for name, item in header.items():
            if name == "__metadata__":
                continue
            begin, end = item["data_offsets"]
            dtype, shape = DTYPES.get(item["dtype"]), tuple(item["shape"])
            if dtype is None:
                raise ValueError(f"{name} has the unknown dtype {item['dtype']}")
            if end - begin != prod(shape) * dtype.itemsize:
                raise ValueError(f"{name}: {end - begin} bytes do not hold {item['dtype']} of shape {shape}")
            found.append(StoredTensor(name, dtype, shape, path, start + begin, start + end))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None
    found.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = start
    for tensor in found:
        if tensor.begin != at:
            raise UserError(f"{path}: not a safetensors file: {tensor.name} does not begin where the one before it ends")
        at = tensor.end
    if at != size:
        raise UserError(f"{path}: {size:,} bytes, its header says {at:,}: truncated or damaged")
    return {tensor.name: tensor for tensor in found}


@dataclass(frozen=True)
class Announced:
    """A tensor that will be written: the header comes before the bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def plan_shards(tensors: Sequence[Announced], shard_bytes: int) -> list[list[Announced]]:
    """Deal tensors, in order, to files of at most `shard_bytes` (a larger tensor gets a file of its own)."""
    shards: list[list[Announced]] = [[]]
    room = shard_bytes
    for tensor in tensors:
        if shards[-1] and tensor.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= tensor.nbytes
    return shards


def write_shards(
    folder: Path, announced: Sequence[Announced], contents: Iterable[torch.Tensor], shard_bytes: int,
    on_bytes: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Write `model.safetensors`, or shards with their index, taking one tensor after another from `contents`, which
    follow `announced`. Files are made durable.

    Raises:
        RuntimeError: a content is not what was announced (a bug).
    """
    shards = plan_shards(announced, shard_bytes)
    source = iter(contents)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], source, on_bytes)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, source, on_bytes)
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in announced)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_file(
    path: Path, shard: Sequence[Announced], source: Iterator[torch.Tensor], on_bytes: Callable[[int], None] | None
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard:
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (at, at + tensor.nbytes)}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes begin aligned
    with DirectWriter(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected in shard:
            content = next(source)
            if content.dtype != expected.dtype or tuple(content.shape) != expected.shape:
                raise RuntimeError(f"{expected.name}: announced {expected}, got {content.dtype} {tuple(content.shape)}")
            file.write(raw_bytes(content.contiguous()))
            if on_bytes is not None:
                on_bytes(expected.nbytes)
