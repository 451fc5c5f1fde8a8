"""The folder in which a corpus grows, `PREFIX.partial/`: what was written so far, and where reading stands."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_ring.corpus.encoding import Encoded
from megatron_ring.corpus.growing import GrowingFiles
from megatron_ring.corpus.sources import Position
from megatron_ring.errors import UserError

FILES = ("data", "lengths", "sources")


@dataclass
class State:
    """How far the work is.

    Attributes:
        settings: what decides the result; work goes on under the same alone.
        source: number of the input file that is read.
        position: where reading stands in it.
        source_documents: of that file so far.
        sizes: bytes of each file of the folder that count.
    """

    settings: dict[str, Any]
    source: int = 0
    position: Position = field(default_factory=Position)
    source_documents: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    largest: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILES, 0))


class Partial:
    """A corpus under way. Use as a context manager: one process at a time has it."""

    def __init__(self, prefix: Path) -> None:
        """Raises `UserError` where another process has it, or the folder cannot be made."""
        self.folder = prefix.with_name(prefix.name + ".partial")
        self._files = GrowingFiles(self.folder, FILES)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise UserError(f"--out {prefix}: cannot be written: {error.strerror}") from None
        if not self._locked():
            raise UserError(f"--out {prefix}: another process prepares this corpus: wait for it, or choose another")

    def _locked(self) -> bool:
        """Take the lock. Workers of a call that was killed hold it for a moment longer."""
        for _ in range(20):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                time.sleep(0.1)
        return False

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()
        self._lock.close()

    def path(self, name: str) -> Path:
        return self._files.path(name)

    def open(self, settings: dict[str, Any], explain: Callable[[dict[str, Any]], str]) -> State:
        """The state that was left, or a new one; the files are cut to it.

        Args:
            explain: what to say of the settings that were left where they are others.

        Raises:
            UserError: other settings, or files that are shorter than the state says.
        """
        state = self._read() or State(settings)
        if state.settings != settings:
            raise UserError(explain(state.settings))
        short = self._files.open(state.sizes)
        if short is not None:
            raise UserError(f"{short}: cut off since it was written: --restart begins anew")
        return state

    def _read(self) -> State | None:
        try:
            found = self._files.read_state()
            return None if found is None else State(**{**found, "position": Position(**found["position"])})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self._files.state}: not the state of a corpus under way: --restart begins anew") from None

    def add(self, state: State, encoded: Encoded, documents: int, tokens: int) -> None:
        """Write a chunk, and count it."""
        self._files.write("data", encoded.tokens, state.sizes)
        self._files.write("lengths", encoded.lengths, state.sizes)
        state.documents += documents
        state.source_documents += documents
        state.tokens += tokens
        state.text_bytes += encoded.text_bytes
        state.largest = max(state.largest, encoded.largest)
        for reason, count in encoded.left_out.items():
            state.left_out[reason] = state.left_out.get(reason, 0) + count

    def finish_source(self, state: State, source: dict[str, Any]) -> None:
        """Note that a file is read whole."""
        self._files.write("sources", json.dumps(source).encode() + b"\n", state.sizes)
        state.source, state.position, state.source_documents = state.source + 1, Position(), 0

    def sources(self) -> list[dict[str, Any]]:
        """The files that are read whole."""
        return [json.loads(line) for line in self.path("sources").read_bytes().splitlines()]

    def save(self, state: State) -> None:
        """Put all on the disk, then the state."""
        self._files.save(asdict(state))

    def clear(self) -> None:
        """Remove what was left of work that is not gone on with."""
        self._files.clear()

    def remove(self) -> None:
        self._files.remove()
