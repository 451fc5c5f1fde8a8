"""A corpus on disk: `PREFIX.idx` and `PREFIX.bin` of megatron-core's `IndexedDataset`, checked before anything is read.

The index is 34 bytes (magic, version, type of the tokens, counts of sequences and documents), then the length (int32) and
the byte offset (int64) of each sequence, then the first sequence of each document (int64). A "document" here is a sequence
of the index, as it is to megatron-core's `GPTDataset`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.config.checks import require
from megatron_ring.errors import UserError

MAGIC, HEADER = b"MMIDIDX\x00\x00", 34
TYPES: dict[int, Any] = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
SAMPLES, SAMPLE_BYTES = 64, 4096
CHECKED_TOKENS = 1 << 24
"""Tokens whose ids are checked when a corpus is opened; of a larger one, as many in 64 parts. Sequences are checked when
they are read."""


@dataclass(frozen=True)
class Source:
    """What is known of a corpus.

    Attributes:
        tokens: of all documents.
        bounds: first document of the trained, the validated and the tested part, and the end.
        part_tokens: tokens of each of these parts.
        key: tells it by its content (32 hex digits), wherever it lies.
    """

    prefix: Path
    documents: int
    tokens: int
    bounds: tuple[int, int, int, int]
    part_tokens: tuple[int, int, int]
    key: str


def open_source(prefix: Path, split: tuple[float, float, float], vocabulary: int, flag: str) -> Source:
    """Check a corpus and count it.

    Args:
        split: shares of its documents in order, of any sum.
        vocabulary: ids that the tokenizer has.

    Raises:
        UserError: a file is missing, truncated, of another format, empty, or holds ids that the tokenizer has not.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, data):
        require(path.is_file(), f"{flag} {prefix}: there is no {path}")
    try:
        return _open(prefix, index, data, split, vocabulary)
    except OSError as error:
        raise UserError(f"{error.filename or prefix}: cannot be read: {error.strerror}") from None


def _open(prefix: Path, index: Path, data: Path, split: tuple[float, float, float], vocabulary: int) -> Source:
    kind, lengths, offsets = _read_index(index)
    documents, size, itemsize = len(lengths), data.stat().st_size, kind().itemsize
    require(documents > 0, f"{index}: holds no document")
    tokens, needed = 0, 0
    for start in range(0, documents, CHECKED_TOKENS):  # in parts: a large index is not held in memory
        part = lengths[start : start + CHECKED_TOKENS].astype(np.int64)
        places = offsets[start : start + CHECKED_TOKENS]
        sound = int(part.min()) >= 0 and int(places.min()) >= 0
        require(sound, f"{index}: damaged, a document has a negative length or place")
        tokens += int(part.sum())
        needed = max(needed, int((places + part * itemsize).max()), tokens * itemsize)
    require(needed <= size, f"{data}: {size:,} bytes, the index needs {needed:,}: truncated, or of another index")
    require(tokens > 0, f"{index}: all {documents:,} documents are empty")
    _check_ids(data, kind, size, vocabulary)
    total, bounds = sum(split), [0]
    for number in range(1, 4):
        bounds.append(round(sum(split[:number]) / total * documents))  # as megatron-core does
    parts = [int(lengths[a:b].sum(dtype=np.int64)) for a, b in pairwise(bounds)]
    key = _fingerprint(index, data)
    return Source(prefix, documents, tokens, tuple(bounds), tuple(parts), key)  # type: ignore[arg-type]


def _read_index(path: Path) -> tuple[Any, np.ndarray, np.ndarray]:
    """Type of the tokens, lengths (tokens) and offsets (bytes) of the sequences."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER)
    require(header[:9] == MAGIC[: len(header)] and bool(header), f"{path}: not an index of megatron-core's indexed data")
    require(len(header) == HEADER, f"{path}: truncated, {size} bytes are no whole header")
    version, code, sequences, documents = struct.unpack("<QBQQ", header[9:])
    require(version == 1, f"{path}: version {version}, only 1 is known")
    require(code in TYPES, f"{path}: tokens of type {code}, not integers")
    whole = HEADER + sequences * 12 + documents * 8
    require(size >= whole, f"{path}: truncated, {size:,} bytes of {whole:,}; write it again")
    if not sequences:
        return TYPES[code], np.zeros(0, np.int32), np.zeros(0, np.int64)
    lengths = np.memmap(path, dtype=np.int32, mode="r", offset=HEADER, shape=(sequences,))
    offsets = np.memmap(path, dtype=np.int64, mode="r", offset=HEADER + sequences * 4, shape=(sequences,))
    starts = np.memmap(path, dtype=np.int64, mode="r", offset=HEADER + sequences * 12, shape=(documents,))
    require(documents > 0 and int(starts[-1]) == sequences, f"{path}: damaged, its documents do not end with its sequences")
    return TYPES[code], lengths, offsets


def _check_ids(path: Path, kind: Any, size: int, vocabulary: int) -> None:
    tokens = np.memmap(path, dtype=kind, mode="r", shape=(size // kind().itemsize,))
    part = -(-CHECKED_TOKENS // SAMPLES)
    starts = range(0, len(tokens), max(part, len(tokens) // SAMPLES))
    for start in starts:
        check_ids(tokens[start : start + part], vocabulary, path)


def check_ids(tokens: np.ndarray, vocabulary: int, path: Path) -> None:
    """Raise `UserError` for ids that the tokenizer has not."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"{path}: holds token id {low if low < 0 else high}, --data.tokenizer has 0 to {vocabulary - 1}: the corpus was "
            f"made with another tokenizer, or is damaged"
        )


def _fingerprint(*paths: Path) -> str:
    """Sizes, and 64 samples of 4 KiB of each file, evenly spaced."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.suffix} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
