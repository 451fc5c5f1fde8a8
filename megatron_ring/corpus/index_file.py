"""The `.idx` file of megatron-core's indexed form, written in blocks and checked before anything relies on it.

Layout (little-endian): 9 bytes `MMIDIDX` and two zeros, uint64 version 1, uint8 dtype code, uint64 sequences S, uint64
document borders D; then int32[S] lengths (tokens), int64[S] offsets in `.bin` (bytes), int64[D] borders of documents
(sequence numbers, from 0 to S); of multimodal corpora int8[S] modes. Source: megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ring.errors import UserError, naming

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # 6 and 7 are floats: no tokens
_BLOCK = 1 << 20  # sequences in memory at a time


@dataclass(frozen=True)
class Index:
    """What an `.idx` file says.

    Attributes:
        dtype: of the tokens in `.bin`.
        sequences, documents: how many; equal in corpora that hold one sequence a document.
        bin_bytes: size of the `.bin` that belongs to it.
    """

    dtype: np.dtype[np.generic]
    sequences: int
    documents: int
    bin_bytes: int

    @property
    def tokens(self) -> int:
        return self.bin_bytes // self.dtype.itemsize


def token_dtype(vocab_size: int) -> np.dtype[np.generic]:
    """What megatron-core stores tokens as: uint16 below 65,500 ids (`DType.optimal_dtype`), else int32."""
    return np.dtype(np.uint16 if vocab_size < 65_500 else np.int32)


def write_index(path: Path, lengths_file: Path, dtype: np.dtype[np.generic]) -> None:
    """Write an `.idx` of one sequence a document; memory does not grow with their number.

    Args:
        lengths_file: raw int32, tokens of each document in order.
    """
    count = lengths_file.stat().st_size // 4
    code = next(code for code, name in _CODES.items() if name == dtype.name)
    with naming(path), path.open("wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, 1, code, count, count + 1))
        stream.writelines(block.tobytes() for block in _lengths(lengths_file))
        end = 0
        for block in _lengths(lengths_file):
            ends = end + np.cumsum(block, dtype=np.int64) * dtype.itemsize
            stream.write(np.concatenate(([end], ends[:-1])).astype("<i8").tobytes())
            end = int(ends[-1])
        for first in range(0, count + 1, _BLOCK):
            stream.write(np.arange(first, min(first + _BLOCK, count + 1), dtype="<i8").tobytes())


def _lengths(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK * 4):
            yield np.frombuffer(block, dtype="<i4")


def _instead(prefix: Path) -> str:
    """What may have been meant by a prefix of no corpus."""
    if prefix.is_dir() and (inside := sorted(prefix.glob("*.idx"))):
        return f"; {prefix} is a folder, give {inside[0].with_suffix('')}"
    return f"; tools/prepare_corpus.py makes them of {prefix}" if prefix.exists() else ""


def read_index(prefix: Path) -> Index:
    """Check `.idx` by itself and against `.bin`, without reading either whole.

    Raises:
        UserError: a file is missing, cut off, of another format, or of another corpus.
    """
    path, data = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    for file in (path, data):
        if not file.is_file():
            raise UserError(f"{file}: no such file: a corpus is the two files PREFIX.bin and PREFIX.idx{_instead(prefix)}")
    size = path.stat().st_size
    with naming(path), path.open("rb") as stream:
        header = stream.read(_HEADER.size)
    if header[:9] != _MAGIC[: len(header)] or not header:
        raise UserError(f"{path}: not an index of megatron-core's form (MMIDIDX): prepare the corpus again")
    if len(header) < _HEADER.size:
        raise UserError(f"{path}: cut off after {size:,} bytes: copy or prepare the corpus again")
    _, version, code, sequences, borders = _HEADER.unpack(header)
    if version != 1 or code not in _CODES:
        raise UserError(f"{path}: version {version}, dtype code {code}: only version 1 with whole numbers is known")
    wanted = _HEADER.size + sequences * 12 + borders * 8
    if size not in (wanted, wanted + sequences):  # the latter with modes
        what = "cut off" if size < wanted else "too long"
        raise UserError(f"{path}: {what}: {size:,} bytes, its header says {wanted:,}: copy or prepare the corpus again")
    dtype = np.dtype(_CODES[code])
    if not sequences or borders < 2:
        raise UserError(f"{path}: the corpus holds no documents: prepare it from files that hold text")
    return Index(dtype, sequences, borders - 1, _checked_arrays(path, data, dtype, sequences, borders))


def sequence_lengths(prefix: Path, index: Index) -> np.ndarray:
    """int32 [sequences], memory-mapped: the tokens of each sequence."""
    return np.memmap(prefix.with_name(prefix.name + ".idx"), "<i4", "r", _HEADER.size, (index.sequences,))


def sequence_offsets(prefix: Path, index: Index) -> np.ndarray:
    """int64 [sequences], memory-mapped: where each sequence begins in `.bin` (bytes)."""
    path, place = prefix.with_name(prefix.name + ".idx"), _HEADER.size + 4 * index.sequences
    return np.memmap(path, "<i8", "r", place, (index.sequences,))


def _checked_arrays(path: Path, data: Path, dtype: np.dtype[np.generic], sequences: int, borders: int) -> int:
    """Bytes of the `.bin`; samples of lengths and offsets agree."""
    at = _HEADER.size
    lengths = np.memmap(path, "<i4", "r", at, (sequences,))
    offsets = np.memmap(path, "<i8", "r", at + sequences * 4, (sequences,))
    documents = np.memmap(path, "<i8", "r", at + sequences * 12, (borders,))
    bin_bytes, found = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize, data.stat().st_size
    if documents[0] != 0 or documents[-1] != sequences:
        raise UserError(f"{path}: its documents do not cover its {sequences:,} sequences: prepare the corpus again")
    if found != bin_bytes:
        what = "cut off" if found < bin_bytes else "too long"
        raise UserError(f"{data}: {what}: {found:,} bytes, {path.name} says {bin_bytes:,}: copy or prepare the corpus again")
    if bin_bytes == 0:
        raise UserError(f"{data}: the corpus holds no tokens: prepare it from files that hold text")
    places = np.unique(np.linspace(0, sequences - 1, num=min(sequences, 4096), dtype=np.int64))
    places = places[places < sequences - 1]
    ends = offsets[places] + lengths[places].astype(np.int64) * dtype.itemsize
    if offsets[0] != 0 or (lengths[places] < 0).any() or (ends != offsets[places + 1]).any():
        raise UserError(f"{path}: lengths and offsets do not agree: prepare the corpus again")
    return bin_bytes
