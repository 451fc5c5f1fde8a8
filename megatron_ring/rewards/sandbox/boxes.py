"""Directories for solutions and what they compile to, and their removal, also after a worker that was killed.

A box is locked with flock as long as the process lives that made it. One that nobody locks has been left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX, _UNLOCKED_YET = "megatron-ring-box-", "megatron-ring-new-"
_OLD = 60.0  # seconds; nobody is that long about to lock a box


@contextmanager
def box() -> Iterator[Path]:
    """A new directory of ours alone, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix=_UNLOCKED_YET))
    try:
        descriptor = lock_folder(folder)
        try:
            folder = folder.rename(folder.with_name(folder.name.replace(_UNLOCKED_YET, _PREFIX, 1)))
            yield folder
        finally:
            os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove boxes that nobody locks: at the start of a worker, and after one that was killed."""
    temporary = Path(tempfile.gettempdir())
    forgotten = [folder for folder in temporary.glob(_UNLOCKED_YET + "*") if _age(folder) > _OLD]
    for folder in (*temporary.glob(_PREFIX + "*"), *forgotten):
        with contextlib.suppress(OSError):
            descriptor = lock_folder(folder)
            try:
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """A descriptor that holds the folder's lock. Raises OSError where another process does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.lstat().st_ctime
    except OSError:
        return 0.0
