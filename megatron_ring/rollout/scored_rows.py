"""The rows of an evaluation of a prompt file, on disk as soon as they are scored: one that is killed goes on where it stood.

Each replica's leader adds rows to a file of its own in a folder that lasts until the result is written. What the same
command finds there it does not sample again. Rows of other weights, settings or problems are removed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rewards.interface import has_verdict, is_graded
from megatron_ring.rollout.evaluation import Figures
from megatron_ring.rollout.journal import Journal
from megatron_ring.rollout.records import Key, ScoredRollout

FOLDER = "unfinished"
_ABOUT, _FILES = "evaluation.json", "replica-*.jsonl"
_PLACE = "place"  # of the prompt in its file


class Place(NamedTuple):
    """Where a row lies, and what is summed up of it."""

    path: Path
    start: int
    size: int
    figures: Figures


class ScoredRows:
    """The rows in an evaluation's folder. Use as a context manager; all ranks of the run do, and make all calls alike.

    Args:
        out: the evaluation's folder.
        identity: of all that decides the rows.
        row: a response as samples.jsonl is to have it.

    Attributes:
        done: keys of the rows with a verdict that an earlier command has left.

    Raises:
        UserError: on every rank: the folder cannot be read or written.
    """

    def __init__(
        self, out: Path, identity: Mapping[str, Any], context: ParallelContext,
        row: Callable[[ScoredRollout], dict[str, Any]],
    ) -> None:  # fmt: skip
        self._folder, self._context, self._row = out / FOLDER, context, row
        self.done: set[Key] = set(collectives.from_main(lambda: _standing(self._folder, identity)))
        self._journal = Journal(self._folder, context.data_rank)

    def __enter__(self) -> ScoredRows:
        if self._context.leads_replica:
            self._journal.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.__exit__(kind, value, trace)

    def add(self, item: ScoredRollout) -> None:
        """One of this replica's, by its leader. Raises `UserError`."""
        self._journal.write({_PLACE: item.rollout.prompt_index, **self._row(item)})

    def write(self, path: Path, count: int) -> list[Figures]:
        """Write all rows, `count`, in order, and say what they are; on the main process, once all ranks have added theirs.
        Raises `UserError`, also where rows are missing."""
        places = [place for _, place in sorted(_places(self._folder).items())]
        if len(places) != count:
            said = f"{self._folder}: {len(places):,} of {count:,} responses are here"
            raise UserError(f"{said}: let --out be a folder that the machines of all processes share")
        write_atomically(path, _lines(places))
        return [place.figures for place in places]

    def remove(self) -> None:
        """Once there is a result, and no rank adds any more; on the main process. Raises `UserError`."""
        try:
            _clear(self._folder)
            (self._folder / _ABOUT).unlink(missing_ok=True)
            with suppress(OSError):  # files of others are in it
                self._folder.rmdir()
        except OSError as error:
            raise UserError(f"cannot remove {self._folder}: {error.strerror}") from None


def _standing(folder: Path, identity: Mapping[str, Any]) -> list[Key]:
    """The rows with a verdict that are there, where they are of this evaluation."""
    about, text = folder / _ABOUT, f"{json.dumps(identity, indent=1, default=str)}\n".encode()
    try:
        if about.is_file() and about.read_bytes() == text:
            return [key for key, place in _places(folder).items() if place.figures.has_verdict]
        removed = _clear(folder)
    except OSError as error:
        raise UserError(f"cannot read or remove {folder}: {error.strerror}") from None
    if removed:
        print(f"evaluate: removed {removed:,} responses from {folder}: other weights, settings or problems", flush=True)
    write_atomically(about, text)
    return []


def _clear(folder: Path) -> int:
    """Remove the rows, and nothing else that may lie there. How many they were."""
    removed = 0
    for path in folder.glob(_FILES):
        with path.open("rb") as stream:
            removed += sum(line.endswith(b"\n") for line in stream)
        path.unlink()
    return removed


def _places(folder: Path) -> dict[Key, Place]:
    found: dict[Key, Place] = {}
    for path in sorted(folder.glob(_FILES)):
        start = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):  # else cut by a kill
                    key, place = _place(path, number, start, line)
                    if place.figures.has_verdict or key not in found:
                        found[key] = place
                start += len(line)
    return found


def _place(path: Path, number: int, start: int, line: bytes) -> tuple[Key, Place]:
    try:
        row = json.loads(line)
        detail = row.get("detail") or {}
        figures = Figures(
            str(row["domain"]), str(row["id"]), float(row["reward"]), int(row["tokens"]), row["finish_reason"],
            has_verdict(detail), is_graded(detail),
        )  # fmt: skip
        return (int(row[_PLACE]), int(row["sample"])), Place(path, start, len(line), figures)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}:{number}: not a row of an evaluation: remove {path.parent} and run again") from None


def _lines(places: list[Place]) -> Iterator[bytes]:
    with ExitStack() as held:
        streams = {path: held.enter_context(path.open("rb")) for path in {place.path for place in places}}
        for place in places:
            stream = streams[place.path]
            stream.seek(place.start)
            row = json.loads(stream.read(place.size))
            del row[_PLACE]
            yield f"{json.dumps(row)}\n".encode()
