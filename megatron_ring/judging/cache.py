"""Replies on disk, one file each, named after all that decides them: nothing is asked twice, after a kill neither."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ring.data.writing import write_atomically
from megatron_ring.judging.verdict import Reply


class ReplyCache:
    """A folder of replies of one judge, or of several.

    Args:
        judge: what decides a reply besides its prompt: server and model or weights, sampling.
    """

    def __init__(self, folder: Path, judge: Mapping[str, Any]) -> None:
        self.folder = folder
        self._judge = json.dumps(judge, sort_keys=True)

    def key(self, prompt: str) -> str:
        """64 hex digits."""
        return hashlib.sha256(f"{self._judge}\n{prompt}".encode()).hexdigest()

    def find(self, prompt: str) -> Reply | None:
        """The reply to a prompt; None where there is none, or a file that does not hold one."""
        key = self.key(prompt)
        try:
            row = json.loads(self._path(key).read_bytes())
            if row["key"] == key and isinstance(row["text"], str) and isinstance(row["finish"], str):
                return Reply(row["text"], row["finish"], row["opened"] is True)
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return None

    def keep(self, prompt: str, reply: Reply) -> None:
        """Write a reply. One with a problem is not kept: it is asked for again another time. Raises `UserError`."""
        if reply.problem is not None:
            return
        key = self.key(prompt)
        row = {"key": key, "text": reply.text, "finish": reply.finish, "opened": reply.opened}
        write_atomically(self._path(key), json.dumps(row).encode())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
