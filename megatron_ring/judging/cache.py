"""Replies on disk, one file each, named after all that decides them: nothing is asked twice, after a kill neither."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ring.data.writing import write_atomically
from megatron_ring.judging.verdict import Reply


class ReplyCache:
    """A folder of replies of one judge, or of several.

    Args:
        judge: what decides a reply besides its prompt: server and model or weights, sampling.
        older: another folder, which replies are looked for in as well.
    """

    def __init__(self, folder: Path, judge: Mapping[str, Any], older: Path | None = None) -> None:
        self.folder, self._older = folder, older
        self._judge = json.dumps(judge, sort_keys=True)

    def key(self, prompt: str) -> str:
        """64 hex digits."""
        return hashlib.sha256(f"{self._judge}\n{prompt}".encode()).hexdigest()

    def find(self, prompt: str) -> Reply | None:
        """The reply to a prompt; None where there is none, or a file that does not hold one."""
        key = self.key(prompt)
        found = _read(self._path(key), key)
        if found is None and self._older is not None:
            found = _read(_path_in(self._older, key), key)
        return found

    def keep(self, prompt: str, reply: Reply) -> None:
        """Write a reply. One with a problem is not kept: it is asked for again another time. Raises `UserError`."""
        if reply.problem is not None:
            return
        key = self.key(prompt)
        row = {"key": key, "text": reply.text, "finish": reply.finish, "opened": reply.opened}
        write_atomically(self._path(key), json.dumps(row).encode())

    def _path(self, key: str) -> Path:
        return _path_in(self.folder, key)


def _path_in(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.json"


def _read(path: Path, key: str) -> Reply | None:
    try:
        row = json.loads(path.read_bytes())
        if row["key"] == key and isinstance(row["text"], str) and isinstance(row["finish"], str):
            return Reply(row["text"], row["finish"], row["opened"] is True)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return None


RECENT, BEFORE = "recent", "before"


def cache_of_run(folder: Path, judge: Mapping[str, Any]) -> ReplyCache:
    """The replies of a training run, which `begin_again` keeps from growing without end."""
    return ReplyCache(folder / RECENT, judge, older=folder / BEFORE)


def begin_again(folder: Path) -> None:
    """A checkpoint is whole, and another is being written: the run may go on from either, and needs the replies since the
    first of them. What is older goes. Where there are none nothing happens."""
    if not (folder / RECENT).is_dir():
        return
    shutil.rmtree(folder / BEFORE, ignore_errors=True)
    with contextlib.suppress(OSError):  # a disk that is full or gone: the replies stay, and are asked for again at worst
        (folder / RECENT).replace(folder / BEFORE)
