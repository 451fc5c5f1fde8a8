"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from megatron_ring.errors import UserError


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a temporary file beside `path`, in pieces as they come, then rename it into place. Raises `UserError` if it
    cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}: choose a folder that can be written, with space left"
        ) from None


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file, on the disk when it returns. Raises `UserError` if it cannot."""
    try:
        with path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def check_target(path: Path, flag: str) -> None:
    """Raise `UserError` where `write_atomically` could not write `path`, before there is something to write."""
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror}") from None
