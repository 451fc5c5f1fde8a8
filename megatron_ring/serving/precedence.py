"""Who has the interpreter while requests come in: the thread that steps, as long as it gives the device work.

The launch of a fill is some thousand calls, each of which lets go of the interpreter. A busy HTTP thread takes it each time,
and a launch of 30 ms takes 200, while the device waits. A large step keeps the device busy for longer than its launch: there
is time for requests after it.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

MOST_SECONDS = 0.1  # of a launch that others wait for: one that captures graphs, or waits for other ranks, takes longer


class Precedence:
    """A context of the thread that steps. Another thread calls `stand_aside` before each piece of its work."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._over.set()
        self._until = 0.0

    def __enter__(self) -> None:
        self._until = time.monotonic() + MOST_SECONDS
        self._over.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def stand_aside(self) -> None:
        """Wait while the context is entered, but not beyond MOST_SECONDS after that."""
        if not self._over.is_set() and (left := self._until - time.monotonic()) > 0:
            self._over.wait(left)
