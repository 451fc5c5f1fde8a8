"""Shards of rows on disk, one folder a step. A shard counts once its `done.json` is there and its files have the sizes that
it states, so that a step that was killed goes on with the shards that it lacks."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ring.errors import naming

Row = dict[str, Any]
SAMPLES = 5  # of each reason and shard, for the report
EXCERPT = 300  # characters of a sample's problem


@dataclass
class Tally:
    """What a step did to one shard, or to several.

    Attributes:
        read, kept: rows by source.
        dropped: rows by source and reason, as `SOURCE\tREASON`.
        changed: rows that stayed but were changed, by reason.
        samples: by reason, [id, evidence, beginning of the problem].
    """

    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.read += other.read
        self.kept += other.kept
        self.dropped += other.dropped
        self.changed += other.changed
        for reason, samples in other.samples.items():
            mine = self.samples.setdefault(reason, [])
            mine += samples[: SAMPLES - len(mine)]

    def reasons(self) -> Counter[str]:
        """Dropped rows by reason."""
        found: Counter[str] = Counter()
        for key, count in self.dropped.items():
            found[key.split("\t")[1]] += count
        return found


@dataclass(frozen=True)
class Shard:
    """One shard of a step's output."""

    folder: Path
    number: int

    def file(self, kind: str) -> Path:
        return self.folder / f"{self.number:05d}.{kind}"

    @property
    def kept(self) -> Path:
        return self.file("kept.jsonl")

    @property
    def done(self) -> bool:
        return self.tally() is not None

    def tally(self) -> Tally | None:
        """What was done; None where the shard is not whole."""
        try:
            found = json.loads(self.file("done.json").read_bytes())
            if any(self.file(kind).stat().st_size != size for kind, size in found["sizes"].items()):
                return None
        except (OSError, ValueError, KeyError):
            return None
        read, kept, dropped, changed = (Counter(found[name]) for name in ("read", "kept", "dropped", "changed"))
        return Tally(read, kept, dropped, changed, found["samples"])


_ENCODER = json.JSONEncoder(ensure_ascii=False)


def dumps(value: Any) -> str:
    """JSON on one line. Halves of surrogate pairs, which UTF-8 cannot hold, are escaped."""
    text = _ENCODER.encode(value)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return json.dumps(value)
    return text


class ShardWriter:
    """Writes the output of a step for one shard: kept and dropped rows and the ledger's lines."""

    def __init__(self, shard: Shard, step: str) -> None:
        self.shard, self.step = shard, step
        self.tally = Tally()
        self._kept: list[str] = []
        self._dropped: list[str] = []
        self._ledger: list[str] = []

    def keep(self, row: Row) -> None:
        self.keep_line(source_of(row), dumps(row))

    def keep_line(self, source: str, line: str) -> None:
        """Keep a row that is JSON already."""
        self.tally.read[source] += 1
        self.tally.kept[source] += 1
        self._kept.append(line)

    def drop(self, row: Row, reason: str, evidence: str) -> None:
        source = source_of(row)
        self.tally.read[source] += 1
        self.tally.dropped[f"{source}\t{reason}"] += 1
        self._dropped.append(dumps({**row, "dropped": {"step": self.step, "reason": reason}}))
        self._note(row, "dropped", reason, evidence)
        samples = self.tally.samples.setdefault(reason, [])
        if len(samples) < SAMPLES:
            from megatron_ring.curation.text import prompt_text

            samples.append([row["id"], evidence, (prompt_text(row.get("prompt")) or str(row.get("raw", "")))[:EXCERPT]])

    def change(self, row: Row, reason: str, evidence: str) -> None:
        self.tally.changed[reason] += 1
        self._note(row, "changed", reason, evidence)

    def _note(self, row: Row, action: str, reason: str, evidence: str) -> None:
        entry = {"id": row["id"], "step": self.step, "action": action, "reason": reason, "evidence": evidence}
        self._ledger.append(dumps(entry))

    def finish(self) -> None:
        """Write the files, `done.json` last."""
        parts = {"kept.jsonl": self._kept, "dropped.jsonl": self._dropped, "ledger.jsonl": self._ledger}
        sizes = {kind: write_lines(self.shard.file(kind), lines) for kind, lines in parts.items()}
        text = json.dumps({**vars(self.tally), "sizes": sizes}, sort_keys=True, ensure_ascii=True)
        write_lines(self.shard.file("done.json"), [text])


def source_of(row: Row) -> str:
    """The source that a row was read from."""
    return str(row["metadata"]["source"])


def write_lines(path: Path, lines: Iterable[str]) -> int:
    """Write lines; the file appears whole or not at all. Its size in bytes. Unlike `write_atomically` it does not wait for
    the disk: sizes are compared before a shard is taken for whole."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    data = "".join(f"{line}\n" for line in lines).encode()
    with naming(path):
        temporary.write_bytes(data)
        temporary.replace(path)
    return len(data)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file of ours, without their ends. U+2028 and the like end none."""
    with path.open("rb") as stream:
        for line in stream:
            yield line.decode()[:-1]


def remove_temporary(folder: Path) -> None:
    """What processes that were killed have left half-written."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
