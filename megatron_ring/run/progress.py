"""A progress bar with ETA on a terminal; a line now and then elsewhere. Only the main process speaks."""

from __future__ import annotations

import sys
import time
from types import TracebackType

QUIET_SECONDS = 10.0


class Progress:
    """Counts `total` units of work from `start`; with unit "byte", amounts and rates are shown as such. Use as a context
    manager."""

    def __init__(self, title: str, total: int, start: int = 0, speaks: bool = True, unit: str = "step") -> None:
        self.title, self.total, self.done, self.speaks, self.unit = title, total, start, speaks, unit
        self._first, self._began = start, time.monotonic()
        self._said = self._began
        self._bar = None
        if speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as RichProgress

            amounts = (DownloadColumn(), TransferSpeedColumn()) if unit == "byte" else (MofNCompleteColumn(),)
            self._bar = RichProgress(
                TextColumn(title), BarColumn(), *amounts, TimeElapsedColumn(), TextColumn("ETA"),
                TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total, completed=start, note="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int) -> None:
        """`amount` more units are finished."""
        self.update(self.done + amount)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are finished; `note` says how it goes."""
        self.done = done
        if not self.speaks:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, note=note)
            return
        now = time.monotonic()
        if done < self.total and now - self._said < QUIET_SECONDS:
            return
        self._said = now
        rate = (now - self._began) / max(1, done - self._first)
        left = rate * (self.total - done)
        amount = f"{self.unit} {done}/{self.total}"
        if self.unit == "byte":
            amount = f"{done / 1e6:,.1f}/{self.total / 1e6:,.1f} MB, {1e-6 / max(rate, 1e-12):.0f} MB/s"
        print(f"{self.title}: {amount}, ETA {left:.0f} s  {note}", file=sys.stderr, flush=True)
