"""Steps that compare all rows with each other, in three passes: a signature of every row (side by side, by shards), what
goes (in one process, from the signatures; texts are compared side by side), and the shards without it (side by side)."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_ring.curation.options import Prefer
from megatron_ring.curation.store import Row, Shard, ShardWriter, dumps, read_lines, source_of, write_lines
from megatron_ring.curation.text import prompt_text
from megatron_ring.curation.workers import Call

Signature = dict[str, NDArray[Any]]
Run = Callable[[Sequence[Call]], list[Any]]


class Decision(NamedTuple):
    """That a row goes: its number, why, the number of the row that stays for it (None: none does), what else to say."""

    row: int
    reason: str
    stays: int | None
    evidence: str


class Grouping(Protocol):
    """A step of this kind."""

    def sign(self, rows: Sequence[Row]) -> Signature:
        """Arrays whose last axis is the rows."""
        ...

    def decide(self, rows: AllRows, run: Run) -> Iterable[Decision]:
        """Which rows go. `run` does calls side by side and gives their results in order."""
        ...


def priority(rows: Sequence[Row], prefer: Prefer) -> NDArray[np.int64]:
    """For each row a number; of duplicates the row with the smallest stays, the first of equals."""
    if prefer == "first":
        return np.zeros(len(rows), np.int64)
    if prefer == "solution":
        return np.array([0 if row.get("solutions") else 1 for row in rows], np.int64)
    if prefer == "longest":
        return np.array([-len(prompt_text(row["prompt"])) for row in rows], np.int64)
    return np.array([-_tests(row["answer"]) for row in rows], np.int64)


def _tests(answer: Any) -> int:
    tests = answer.get("tests") if isinstance(answer, dict) else None
    return len(tests) if isinstance(tests, list) else 0


@dataclass(frozen=True)
class _SavedArray:
    """An array that lies in a file of numpy's. It is read in pieces and not mapped: pages of a file that are mapped count as
    memory of the process."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @classmethod
    def open(cls, path: Path) -> _SavedArray:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            return cls(path, shape, dtype, stream.tell())

    def read(self, line: int | None) -> NDArray[Any]:
        """One line of it, or all."""
        shape = self.shape if line is None else self.shape[1:]
        count = math.prod(shape)
        start = self.start + (line or 0) * count * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=start).reshape(shape)


class AllRows:
    """All rows of a step's input by number, over its shards. Arrays of signatures stay on disk until they are asked for."""

    def __init__(self, shards: Sequence[Shard], folder: Path) -> None:
        self.shards, self.folder = shards, folder
        self._arrays: dict[str, list[_SavedArray]] = {}
        self._counts = [array.shape[-1] - 1 for array in self._saved("offsets")]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _saved(self, name: str) -> list[_SavedArray]:
        """The array of that name of each shard."""
        found = self._arrays.get(name)
        if found is None:
            files = [Shard(self.folder, shard.number).file(f"{name}.npy") for shard in self.shards]
            found = self._arrays[name] = [_SavedArray.open(path) for path in files]
        return found

    def column(self, name: str, line: int | None = None) -> NDArray[Any]:
        """A signature's array of all rows; of one with lines only that line."""
        return np.concatenate([array.read(line) for array in self._saved(name)], axis=-1)

    def lines(self, name: str) -> int:
        """How many lines an array has."""
        return int(self._saved(name)[0].shape[0])

    def row(self, index: int) -> Row:
        """One row, read from its shard."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        offsets, local = self._offsets(shard), index - int(self._starts[shard])
        with self.shards[shard].kept.open("rb") as stream:
            stream.seek(int(offsets[local]))
            found: Row = json.loads(stream.read(int(offsets[local + 1] - offsets[local])))
        return found

    @functools.lru_cache(maxsize=64)  # noqa: B019 - lives as long as one decision
    def _offsets(self, shard: int) -> NDArray[Any]:
        return self._saved("offsets")[shard].read(None)

    def by_shard(self, decisions: Iterable[Decision]) -> Iterator[tuple[Shard, dict[int, list[Any]]]]:
        """For every shard the decisions about its rows, by place in it: [reason, evidence]."""
        found: list[dict[int, list[Any]]] = [{} for _ in self.shards]
        for decision in decisions:
            shard = int(np.searchsorted(self._starts, decision.row, side="right")) - 1
            said = decision.evidence
            if decision.stays is not None:
                said = f"{said} of {self.row(decision.stays)['id']}"
            found[shard][decision.row - int(self._starts[shard])] = [decision.reason, said]
        return zip([Shard(self.folder, shard.number) for shard in self.shards], found, strict=True)


def sign_shard(step: Grouping, given: Shard, taken: Shard) -> None:
    """The first pass for one shard."""
    rows, offsets = [], [0]
    for line in read_lines(given.kept):
        rows.append(json.loads(line))
        offsets.append(offsets[-1] + len(line.encode()) + 1)
    arrays = {"offsets": np.array(offsets, np.int64), **step.sign(rows)}
    for name, array in arrays.items():
        path = taken.file(f"{name}.npy")
        temporary = path.with_name(f"{path.name}.tmp")
        with temporary.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        temporary.replace(path)
    write_lines(taken.file("signed.json"), [json.dumps(sorted(arrays))])


def is_signed(taken: Shard) -> bool:
    """Whether the first pass for a shard is done."""
    try:
        names = json.loads(taken.file("signed.json").read_bytes())
    except (OSError, ValueError):
        return False
    return all(taken.file(f"{name}.npy").is_file() for name in names)


def decide(step: Grouping, given: Sequence[Shard], folder: Path, run: Run) -> None:
    """The second pass."""
    rows = AllRows(given, folder)
    for shard, found in rows.by_shard(step.decide(rows, run)):
        write_lines(shard.file("decisions.json"), [dumps(found)])
    write_lines(folder / "decided", [str(len(rows))])


def filter_shard(name: str, given: Shard, taken: Shard) -> None:
    """The third pass for one shard."""
    found = json.loads(taken.file("decisions.json").read_bytes())
    writer, source = ShardWriter(taken, name), None
    for place, line in enumerate(read_lines(given.kept)):
        decision = found.get(str(place))
        if decision is not None:
            writer.drop(json.loads(line), *decision)
            continue
        if source is None:  # one for all: a shard is a piece of one file
            source = source_of(json.loads(line))
        writer.keep_line(source, line)
    writer.finish()


@dataclass(frozen=True)
class Group:
    """Rows that say the same, in the order of preference."""

    members: tuple[int, ...]


def equal_groups(keys: NDArray[np.uint64], priority: NDArray[np.int64]) -> Iterator[Group]:
    """Groups of rows with equal keys. keys: [2, rows]."""
    order = np.lexsort((np.arange(len(priority)), priority, keys[1], keys[0]))
    one, other = keys[0][order], keys[1][order]
    same = (one[1:] == one[:-1]) & (other[1:] == other[:-1])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield Group(tuple(order[start : end + 1].tolist()))
