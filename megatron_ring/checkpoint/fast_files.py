"""Large files, read and written block by block past the page cache, with a checksum of each block.

A checkpoint is written once and read once: going through the page cache costs a copy and fresh memory for every byte,
evicts what others have there, and is throttled when too much of it is dirty (docs/LOG.md has figures). A thread reads the
next block, or writes the last one, while the caller works on this one.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

BLOCK = 16 << 20  # bytes; also what one checksum covers

MOST_FILES = 8  # that one process reads or writes at once
LEAST_BYTES = 256 << 20  # of each of them


def files_at_once(size: int) -> int:
    """How many files one process reads or writes beside each other, of `size` bytes in all: each keeps two threads busy."""
    return max(1, min(MOST_FILES, cores() // 2, size // LEAST_BYTES))


def cores() -> int:
    """Cores for each process of this machine."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, found // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # torchrun says how many


def _open(path: Path, flags: int) -> int:
    """Open for direct transfers where the file system has them; others (tmpfs, some network disks) take ordinary ones."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags | os.O_CLOEXEC, 0o666)


def as_bytes(data: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of anything with a buffer."""
    view = memoryview(data)
    return np.frombuffer(view if view.nbytes else bytearray(), dtype=np.uint8)


def _ordinary(file: int) -> None:
    """Transfer through the page cache from here on: sizes and places need no alignment then."""
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)


class Scratch:
    """Memory for one tensor after another: touching fresh memory for each costs more than reading it."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)

    def room(self, size: int) -> torch.Tensor:
        """`size` bytes, uint8, the same ones every time."""
        if self._held.numel() < size:
            self._held = torch.empty(0, dtype=torch.uint8)  # free before taking more
            self._held = torch.empty(size, dtype=torch.uint8)
        return self._held[:size]


class _Blocks:
    """Two page-aligned rooms, a thread, and a file."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._file = _open(path, flags)
        self._rooms = [mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK)]
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[Any] | None = None
        self._closed = False

    def _later(self, work: Callable[..., Any], *arguments: Any) -> None:
        self._pending = self._thread.submit(work, *arguments)

    def _await(self) -> Any:
        """Result of what the thread does; raises what it raised."""
        pending, self._pending = self._pending, None
        return None if pending is None else pending.result()

    def _release(self) -> None:
        if not self._closed:
            self._closed = True
            self._thread.shutdown()
            os.close(self._file)
            self._rooms.clear()  # not closed: the frames of an error under way may hold views of them


class DirectWriter(_Blocks):
    """A new file, written from start to end. Leaving its context, or closing it, makes it durable.

    Attributes:
        checksums: CRC-32 of each block of 16 MiB, once it is closed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.checksums: list[str] = []
        self._filled = self._written = 0

    def __enter__(self) -> DirectWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def tell(self) -> int:
        return self._written + self._filled

    def fileno(self) -> int:
        return self._file

    def flush(self) -> None:
        """Nothing: what is not a whole block is not written before the end."""

    def write(self, data: Any) -> int:
        """Append bytes, or anything with their buffer. Raises OSError for this block or the one before."""
        source = as_bytes(data)
        at = 0
        while at < len(source):
            room = self._room(len(source) - at)
            room[:] = source[at : at + len(room)]  # numpy lets other threads run while it copies
            at += self._fill(len(room))
        return len(source)

    def write_tensor(self, source: torch.Tensor) -> int:
        """Append uint8 [size] from any device. Raises as `write`."""
        at = 0  # not by numpy: what has once been an array of it never gives its memory back (`HostStore`)
        while at < len(source):
            room = torch.from_numpy(self._room(len(source) - at))
            at += self._fill(len(room.copy_(source[at : at + len(room)])))
        return len(source)

    def _room(self, wanted: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """What is free of the block that is being filled, at most so many bytes."""
        return np.frombuffer(self._rooms[0], np.uint8, min(wanted, BLOCK - self._filled), self._filled)

    def _fill(self, count: int) -> int:
        self._filled += count
        if self._filled == BLOCK:
            self._hand_over()
        return count

    def _hand_over(self) -> None:
        # Summed here: the other thread has enough to do with writing.
        with memoryview(self._rooms[0]) as whole, whole[: self._filled] as block:
            self.checksums.append(f"{zlib.crc32(block):08x}")
        self._await()
        self._later(self._put, self._rooms[0], self._filled)
        self._rooms.reverse()
        self._written += self._filled
        self._filled = 0

    def _put(self, room: mmap.mmap, size: int) -> None:
        with memoryview(room) as whole, whole[:size] as block:
            if size < BLOCK:
                _ordinary(self._file)  # the end need not fill the disk's blocks
            done = 0
            while done < size:
                with block[done:] as rest:
                    written = os.write(self._file, rest)
                done += written
                if written % mmap.PAGESIZE:
                    _ordinary(self._file)

    def close(self) -> None:
        """Write what is left and make the file durable. Idempotent."""
        if self._closed:
            return
        try:
            if self._filled:
                self._hand_over()
            self._await()
            os.fsync(self._file)
        finally:
            self._release()


class DirectReader(_Blocks):
    """A file read more or less from start to end.

    Args:
        checksums: what its blocks should have (see `DirectWriter`); None: anything goes.
    """

    def __init__(self, path: Path, checksums: Sequence[str] | None = None) -> None:
        super().__init__(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size
        self._expected = checksums
        self._held = self._asked = -1  # numbers of the blocks in the rooms
        self._bytes = 0

    def __enter__(self) -> DirectReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read_into(self, target: torch.Tensor, offset: int) -> int:
        """Fill `target`, uint8 [size] of any device, from `offset` on; how many bytes there were.

        Raises:
            ValueError: a block is not what its checksum says.
        """
        done = 0
        while done < len(target) and offset + done < self.size:
            number, start = divmod(offset + done, BLOCK)
            self._hold(number)
            taken = min(len(target) - done, self._bytes - start)
            if taken <= 0:
                break
            room = np.frombuffer(self._rooms[0], np.uint8, taken, start)
            target[done : done + taken].copy_(torch.from_numpy(room))
            done += taken
        return done

    def checksums(self) -> list[str]:
        """CRC-32 of every block."""
        found = []
        for number in range(-(-self.size // BLOCK)):
            self._hold(number)
            with memoryview(self._rooms[0]) as room:
                found.append(f"{zlib.crc32(room[: self._bytes]):08x}")
        return found

    def _hold(self, number: int) -> None:
        """Have block `number` in the first room, and begin to read the next one into the second."""
        if number == self._held:
            return
        ready = self._await()
        if number != self._asked:
            ready = self._load(self._rooms[1], number)
        self._rooms.reverse()
        self._held, self._bytes, self._asked = number, ready, -1
        if (number + 1) * BLOCK < self.size:
            self._asked = number + 1
            self._later(self._load, self._rooms[1], number + 1)

    def _load(self, room: mmap.mmap, number: int) -> int:
        done = 0
        with memoryview(room) as whole:
            while done < BLOCK:
                with whole[done:] as rest:
                    got = os.preadv(self._file, [rest], number * BLOCK + done)
                done += got
                if not got or number * BLOCK + done >= self.size:
                    break
                if got % mmap.PAGESIZE:
                    _ordinary(self._file)
            if self._expected is not None:
                with whole[:done] as block:
                    if number >= len(self._expected) or self._expected[number] != f"{zlib.crc32(block):08x}":
                        raise ValueError(f"block {number} of {self.path} is damaged")
        return done

    def close(self) -> None:
        """Give everything back."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending.exception() if not self._pending.cancelled() else None
            self._pending = None
        self._release()
