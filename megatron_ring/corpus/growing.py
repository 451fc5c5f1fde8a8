"""Files that are only added to, and the state up to which they count: work that a kill at any moment interrupts goes on.

`state.json` is replaced after the files it speaks of are on the disk, so that a kill at any moment leaves a state whose
files hold at least what it says. What they hold beyond is cut off when the work goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import naming


class GrowingFiles:
    """The files NAME.part of a folder, and state.json beside them. One process at a time has them."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.state = folder, folder / "state.json"
        self._names = names
        self._streams: dict[str, IO[bytes]] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def read_state(self) -> Any:
        """What `save` was given last; None where there is nothing. Raises `ValueError` where it cannot be read."""
        return json.loads(self.state.read_bytes()) if self.state.exists() else None

    def open(self, sizes: Mapping[str, int]) -> Path | None:
        """Cut the files to these sizes (bytes), to go on behind them. A file that is shorter is given back instead."""
        for name in self._names:
            path = self.path(name)
            with naming(path):
                stream = path.open("ab")
                self._streams[name] = stream
                if stream.tell() < sizes[name]:
                    return path
                stream.truncate(sizes[name])
        return None

    def write(self, name: str, data: bytes, sizes: dict[str, int]) -> None:
        """Add to a file, and to its size."""
        with naming(self.path(name)):
            self._streams[name].write(data)
        sizes[name] += len(data)

    def save(self, state: Mapping[str, Any]) -> None:
        """Put all on the disk, then the state."""
        for name, stream in self._streams.items():
            with naming(self.path(name)):
                stream.flush()
                os.fsync(stream.fileno())
        write_atomically(self.state, json.dumps(state).encode())

    def clear(self) -> None:
        """Remove what was left of work that is not gone on with."""
        self.close()
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def close(self) -> None:
        for stream in self._streams.values():
            try:
                stream.close()
            except OSError:  # of a full disk: what failed before says so
                continue
        self._streams = {}

    def remove(self) -> None:
        self.close()
        shutil.rmtree(self.folder)
