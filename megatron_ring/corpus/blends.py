"""Which corpus each next sequence comes from.

The order is megatron-core's (`build_blending_indices`): the corpus that lags most behind its share comes next. Here it goes
on from a place instead of being made for a whole run, so that a run can continue with other shares, corpora or lengths.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.config.checks import require
from megatron_ring.config.yaml_file import read_yaml
from megatron_ring.errors import UserError

BLEND_FILES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Entry:
    """A corpus of a blend, as the user gave it.

    Attributes:
        weight: its share of all sequences, in any unit; None where none was given.
        epochs: passes over it until it is left out; None: any.
        name: in metrics.
    """

    prefix: Path
    weight: float | None = None
    epochs: float | None = None
    name: str = ""


def read_blend(given: Sequence[str], flag: str = "--data.train") -> list[Entry]:
    """The corpora of `PREFIX` or `PREFIX:WEIGHT` each, or of one blend file.

    Raises:
        UserError: a malformed file, a weight that is no number, one corpus twice, weights for some alone.
    """
    files = [text for text in given if text.endswith(BLEND_FILES)]
    require(not files or len(given) == 1, f"{flag}: a blend file {files[:1]} stands alone, put the other corpora into it")
    entries = _read_file(Path(files[0]), flag) if files else [_entry(text, flag) for text in given]
    entries = [dataclasses.replace(entry, name=name) for entry, name in zip(entries, _names(entries, flag), strict=True)]
    weighted = [entry for entry in entries if entry.weight is not None]
    require(len(weighted) in (0, len(entries)), f"{flag}: give a weight to each corpus, or to none")
    require(not weighted or any(entry.weight for entry in entries), f"{flag}: every weight is 0, nothing would be read")
    return entries


def _entry(text: str, flag: str) -> Entry:
    prefix, colon, number = text.rpartition(":")
    if not colon:
        return Entry(_prefix(text))
    try:
        weight = float(number)
    except ValueError:
        return Entry(_prefix(text))  # a path with a colon
    require(bool(prefix), f"{flag} {text}: names no corpus")
    return Entry(_prefix(prefix), _number(weight, f"{flag} {text}: the weight"))


def _prefix(text: str) -> Path:
    return Path(text.removesuffix(".bin").removesuffix(".idx"))


def _number(value: Any, what: str, least: str = "at least 0") -> float:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = fits and (value > 0 if least == "above 0" else value >= 0)
    require(fits, f"{what} is {value!r}, not a number {least}")
    return float(value)


def _read_file(path: Path, flag: str) -> list[Entry]:
    """A blend file: `sources`, a list of `prefix` (beside the file), `weight`, `epochs` and `name`."""
    try:
        values = read_yaml(path, "a blend file")
        unknown = sorted(set(values) - {"sources"})
        require(not unknown, f"unknown setting {', '.join(map(str, unknown))}; a blend file has sources alone")
        sources = values.get("sources")
        require(isinstance(sources, list) and bool(sources), "sources must be a list of corpora")
        return [_from_file(path, number, source) for number, source in enumerate(sources or [])]
    except UserError as error:
        raise UserError(f"{flag} {path}: {error}") from None


def _from_file(path: Path, number: int, source: Any) -> Entry:
    where = f"sources[{number}]"
    require(isinstance(source, Mapping), f"{where} is not a group of settings (prefix, weight, epochs, name)")
    unknown = sorted(str(key) for key in set(source) - {"prefix", "weight", "epochs", "name"})
    require(not unknown, f"{where}: unknown setting {', '.join(unknown)} (there are prefix, weight, epochs, name)")
    prefix, name = source.get("prefix"), source.get("name", "")
    require(isinstance(prefix, str) and bool(prefix), f"{where}: prefix is missing, or no text")
    require(isinstance(name, str), f"{where}: name is no text")
    weight, epochs = source.get("weight"), source.get("epochs")
    return Entry(
        path.parent / _prefix(str(prefix)),
        None if weight is None else _number(weight, f"{where}: weight"),
        None if epochs is None else _number(epochs, f"{where}: epochs", "above 0"),
        str(name),
    )


def _names(entries: Sequence[Entry], flag: str) -> list[str]:
    """A name for each: the given one, the prefix's last part, or its last two where the last is not enough."""
    short = [entry.name or entry.prefix.name for entry in entries]
    names = [
        name if entry.name or short.count(name) == 1 else f"{entry.prefix.parent.name}/{name}"
        for entry, name in zip(entries, short, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(
        not twice, f"{flag}: two corpora are called {', '.join(twice)}: give each a `name` in a blend file, and each once"
    )
    return names


@dataclass(frozen=True)
class Share:
    """A corpus of a blend. `key` tells it by its content; `limit`: sequences until it is left out."""

    key: str
    weight: float
    limit: int | None = None


@dataclass(frozen=True)
class Place:
    """Where a run stands in its corpora; `to_json` is what checkpoints hold.

    Attributes:
        samples: sequences read so far, of all corpora.
        read: sequences read of each corpus, by its key; also of those that are no longer in the blend.
        shares: the corpora that the next sequences come from, and their weights.
        since: sequences since `shares` are what they are.
        drawn: how many of these came from each corpus.
    """

    samples: int = 0
    read: Mapping[str, int] = field(default_factory=dict)
    shares: tuple[tuple[str, float], ...] = ()
    since: int = 0
    drawn: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"shares": [list(share) for share in self.shares]}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Place:
        return Place(**{**values, "shares": tuple((key, weight) for key, weight in values["shares"])})


class Blend:
    """Deals sequences to corpora. It keeps nothing: a place goes in, the next place comes out."""

    def __init__(self, shares: Sequence[Share]) -> None:
        self.shares = list(shares)
        self._index = {share.key: number for number, share in enumerate(self.shares)}

    def left(self, place: Place) -> int | None:
        """Sequences until every corpus has come to its limit; None where one has none."""
        active = [share for share in self.shares if share.weight > 0]
        if any(share.limit is None for share in active):
            return None
        return sum(max(0, (share.limit or 0) - place.read.get(share.key, 0)) for share in active)

    def draw(self, place: Place, count: int) -> tuple[Place, list[tuple[int, int]]]:
        """The next `count` sequences, fewer where all corpora have come to their limits.

        Returns:
            the place behind them; for each the number of its corpus and its number in that corpus, from 0 over all epochs.
        """
        read = dict(place.read)
        found: list[tuple[int, int]] = []
        shares, since, drawn = place.shares, place.since, dict(place.drawn)
        active = self._active(read)
        while len(found) < count and active:
            now = tuple((share.key, share.weight) for share in active)
            if now != shares:
                shares, since, drawn = now, 0, {}
            numbers = [self._index[share.key] for share in active]
            weights = np.array([share.weight for share in active])
            counts = np.array([drawn.get(share.key, 0) for share in active], dtype=np.int64)
            weights, ended = weights / weights.sum(), False
            while len(found) < count and not ended:
                behind = weights * max(since, 1) - counts
                best = int(behind.argmax())
                share = active[best]
                found.append((numbers[best], read.get(share.key, 0)))
                read[share.key] = read.get(share.key, 0) + 1
                counts[best] += 1
                since += 1
                ended = share.limit is not None and read[share.key] >= share.limit
            drawn = {share.key: int(n) for share, n in zip(active, counts, strict=True)}
            active = self._active(read)
        return Place(place.samples + len(found), read, shares, since, drawn), found

    def _active(self, read: Mapping[str, int]) -> list[Share]:
        return [s for s in self.shares if s.weight > 0 and (s.limit is None or read.get(s.key, 0) < s.limit)]
