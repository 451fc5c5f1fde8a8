"""Tokenised conversations on disk: a folder that is mapped, not read, so that its size costs a process no memory.

| file | |
|---|---|
| `tokens.bin`, `tokens.idx` | the tokens in megatron-core's indexed form, one sequence a conversation |
| `mask.bin` | uint8 [tokens]: 1 where the token is trained |
| `checks.bin` | uint32 [conversations]: CRC-32 of a conversation's tokens and mask |
| `left_out.bin` | int64: numbers (from 0) of the conversations that spell control tokens and are left out |
| `manifest.json` | what they were made of, their sizes, and checksums of the small ones |

The folder appears whole, under a name that is the hash of all that decides its content. A folder of other content, or with a
file that is cut off or changed, is not opened. Tokens and masks are checked as they are read, conversation by conversation.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.corpus.index_file import read_index, sequence_lengths, sequence_offsets
from megatron_ring.errors import UserError

MANIFEST = "manifest.json"
DATA = ("tokens.bin", "mask.bin")
SMALL = ("tokens.idx", "checks.bin", "left_out.bin")
"""Files whose checksums are compared when a store is opened."""


class DamagedStoreError(UserError):
    """A folder that is no whole store of the wanted content."""


@dataclass(frozen=True)
class StoreManifest:
    """What a store says of itself.

    Attributes:
        key: hash of all that decides the content.
        records: conversations of the file, those that are left out among them.
        remark: what is to be said of how the file was read.
        made_of: the file, tokenizer and settings, for people.
        sizes: bytes of each file.
        digest: of the files `SMALL`.
    """

    key: str
    records: int
    remark: str
    made_of: dict[str, Any]
    sizes: dict[str, int]
    digest: str

    def to_json(self) -> bytes:
        """With a checksum of its own."""
        values = asdict(self)
        return json.dumps({**values, "check": _check_of(values)}, indent=2, ensure_ascii=False).encode()

    @classmethod
    def read(cls, path: Path) -> StoreManifest:
        """Raises `DamagedStoreError`."""
        try:
            values = json.loads(path.read_bytes())
            check = values.pop("check")
            manifest = cls(**values)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            raise DamagedStoreError(f"{path}: not a readable manifest") from None
        if check != _check_of(values):
            raise DamagedStoreError(f"{path}: changed since it was written")
        return manifest


def _check_of(values: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()


def small_digest(folder: Path) -> str:
    """Of the files that are compared when a store is opened."""
    digest = hashlib.blake2b(digest_size=16)
    for name in SMALL:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


class TokenStore:
    """A store, mapped.

    Attributes: `folder`, `manifest`, `lengths` (int32 [conversations], tokens of each), `left_out` (int64, see the module).
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Raises `DamagedStoreError` where the folder is not a whole store with this key."""
        self.folder, self.manifest = folder, StoreManifest.read(folder / MANIFEST)
        if self.manifest.key != key:
            raise DamagedStoreError(f"{folder}: of another content")
        try:
            sizes = {name: (folder / name).stat().st_size for name in (*DATA, *SMALL)}
            if sizes != self.manifest.sizes or small_digest(folder) != self.manifest.digest:
                raise DamagedStoreError(f"{folder}: cut off or changed since it was written")
            index = read_index(folder / "tokens")
        except OSError as error:
            raise DamagedStoreError(f"{error.filename}: cannot be read: {error.strerror}") from None
        except DamagedStoreError:
            raise
        except UserError as error:
            raise DamagedStoreError(str(error)) from None
        self.lengths = sequence_lengths(folder / "tokens", index)
        self._offsets, self._dtype = sequence_offsets(folder / "tokens", index), index.dtype
        self._checks = np.memmap(folder / "checks.bin", "<u4", "r")
        self.left_out = np.fromfile(folder / "left_out.bin", "<i8")
        self._tokens, self._mask = (_mapped(folder / name) for name in DATA)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [n] and mask int8 [n] of a conversation (counted from 0), copied.

        Raises:
            DamagedStoreError: they are not what was written.
        """
        begin, length = int(self._offsets[number]), int(self.lengths[number])
        tokens = self._tokens[begin : begin + length * self._dtype.itemsize]
        first = begin // self._dtype.itemsize
        mask = self._mask[first : first + length]
        if zlib.crc32(mask, zlib.crc32(tokens)) != self._checks[number]:
            raise DamagedStoreError(
                f"{self.folder}: damaged since it was written (conversation {number + 1}): remove this folder, then "
                f"continue with the same command"
            )
        return np.frombuffer(tokens, self._dtype).astype(np.int32), np.frombuffer(mask, np.int8).copy()

    def let_go(self) -> None:
        """Let the system count what was read so far to its file cache alone, and not to this process."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for one in (self._tokens, self._mask):
                one.madvise(mmap.MADV_DONTNEED)

    def record_of(self, number: int) -> int:
        """Number (from 1) that a conversation of the store has among all of the file."""
        before = self.left_out - np.arange(len(self.left_out))
        return number + int(np.searchsorted(before, number, side="right")) + 1


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
