"""The n-grams of benchmark problems, and which problems a text overlaps with."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_ring.curation.options import Decontaminate
from megatron_ring.curation.reading import File, contract_row, open_source
from megatron_ring.curation.recipe import Source
from megatron_ring.curation.store import write_lines
from megatron_ring.curation.text import prompt_text, words
from megatron_ring.data.forms import small
from megatron_ring.data.messages import RecordError
from megatron_ring.data.rows import read_rows
from megatron_ring.errors import UserError

_DROPPED = frozenset("()[]{}^_%&|'")
_COLUMNS = ("problem", "question", "prompt", "question_content", "description", "content", "origin_prompt", "input", "text")
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Item:
    """A benchmark's problem, or its answer where that is a text.

    Attributes:
        place: FILE:LINE.
        name: of the file, without its suffix.
        size: tokens.
        answer: of the problem as tokens, to compare with a row's.
        digest: of all tokens, for problems shorter than an n-gram.
    """

    place: str
    name: str
    size: int
    answer: str
    digest: int


class Overlap(NamedTuple):
    """A benchmark problem that a text holds in part. `coverage`, `long_coverage`: shares of its tokens in common runs of
    `ngram` and of `long_ngram` tokens."""

    item: Item
    coverage: float
    long_coverage: float


def tokens_of(text: str, renamed: bool) -> list[str]:
    """The tokens that overlap is measured in; with `renamed` one-letter names are all the same."""
    found = [token for token in words(text) if token not in _DROPPED]
    return ["v" if renamed and len(token) == 1 and token.isascii() and token.isalpha() else token for token in found]


@functools.cache
def _multipliers(size: int) -> Hashes:
    return np.random.default_rng(size).integers(0, 2**63, size, np.uint64) * np.uint64(2) + np.uint64(1)


@functools.lru_cache(maxsize=1 << 18)
def _crc(token: str) -> int:
    return zlib.crc32(token.encode("utf-8", "surrogatepass")) + 1


def hashes(tokens: Sequence[str]) -> Hashes:
    """[tokens] one number each."""
    return np.fromiter(map(_crc, tokens), np.uint64, len(tokens))


def grams(token_hashes: Hashes, size: int) -> Hashes:
    """[tokens − size + 1] one number for each run of `size` tokens."""
    count = len(token_hashes) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for place, factor in enumerate(_multipliers(size)):
        total += token_hashes[place : place + count] * factor
    return total


def digest(token_hashes: Hashes) -> int:
    """Of a whole text."""
    return int(grams(token_hashes, len(token_hashes))[0]) if len(token_hashes) else 0


class Index:
    """N-grams of all items, sorted, with the item and the position of each."""

    def __init__(self, items: Sequence[Item], table: NDArray[np.uint64], options: Decontaminate) -> None:
        """table: [3, n-grams] hash, item, position; sorted by hash."""
        self.items, self._options = items, options
        self._hashes, self._items, self._positions = table
        self._short = {item.digest: item for item in reversed(items) if item.size < options.ngram}

    def overlaps(self, token_hashes: Hashes) -> list[Overlap]:
        """Items that share a run of `ngram` tokens with a text, in the order of the benchmarks; a shorter item where it is
        the whole text."""
        short = self._short.get(digest(token_hashes)) if len(token_hashes) < self._options.ngram else None
        found = [Overlap(short, 1.0, 1.0)] if short is not None else []
        wanted = np.unique(grams(token_hashes, self._options.ngram))
        low = np.searchsorted(self._hashes, wanted, "left")
        known = low < len(self._hashes)
        known[known] = self._hashes[low[known]] == wanted[known]
        if not known.any():
            return found
        high = np.searchsorted(self._hashes, wanted[known], "right")
        hits = np.concatenate([np.arange(a, b) for a, b in zip(low[known].tolist(), high.tolist(), strict=True)])
        items, positions = self._items[hits].astype(np.int64), self._positions[hits].astype(np.int64)
        for number in np.unique(items).tolist():
            found.append(self._overlap(self.items[number], np.sort(positions[items == number])))
        return found

    def _overlap(self, item: Item, starts: NDArray[np.int64]) -> Overlap:
        """Coverage from the places of an item's n-grams that the text has."""
        size, long_size = self._options.ngram, self._options.long_ngram
        covered = np.zeros(item.size, bool)
        for start in starts.tolist():
            covered[start : start + size] = True
        # Neighbouring n-grams in common are one longer run, of the text too but for rare coincidence.
        long = np.zeros(item.size, bool)
        run = [int(starts[0]), int(starts[0])]
        for start in [*starts[1:].tolist(), -2]:
            if start == run[1] + 1:
                run[1] = start
                continue
            if run[1] + size - run[0] >= long_size:
                long[run[0] : run[1] + size] = True
            run = [start, start]
        return Overlap(item, float(covered.mean()), float(long.mean()))

    def save(self, folder: Path) -> None:
        """Write it for `load`."""
        np.save(folder / "table.npy", np.stack([self._hashes, self._items, self._positions]), allow_pickle=False)
        write_lines(folder / "items.json", [json.dumps([item.__dict__ for item in self.items])])

    @classmethod
    def load(cls, folder: Path, options: Decontaminate) -> Index:
        """What `save` wrote."""
        items = [Item(**item) for item in json.loads((folder / "items.json").read_bytes())]
        return cls(items, np.load(folder / "table.npy", allow_pickle=False), options)


def build(options: Decontaminate, unpacked: Path) -> Index:
    """The index of the benchmarks' files. Raises `UserError` for a file that holds no problems."""
    items: list[Item] = []
    parts: list[NDArray[np.uint64]] = []
    for path in options.benchmarks:
        before = len(items)
        for place, problem, answer in benchmark_rows(path, unpacked):
            said = " ".join(words(answer))
            for text in (problem, answer if len(words(answer)) >= 2 * options.ngram else ""):
                token_hashes = hashes(tokens_of(text, options.renamed))
                if not len(token_hashes):
                    continue
                found = grams(token_hashes, options.ngram)
                number = np.full(len(found), len(items), np.uint64)
                parts.append(np.stack([found, number, np.arange(len(found), dtype=np.uint64)]))
                items.append(Item(place, path.name.split(".")[0], len(token_hashes), said, digest(token_hashes)))
        if len(items) == before:
            raise UserError(f"benchmarks: {path}: no problems: check the file")
    table = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.uint64)
    return Index(items, table[:, np.argsort(table[0], kind="stable")], options)


def benchmark_rows(path: Path, unpacked: Path) -> Iterator[tuple[str, str, str]]:
    """FILE:LINE, problem and answer (empty where there is none as text) of each row that has a problem."""
    source = Source("benchmark", (path,), domain="math")
    form = None
    try:
        files, _ = open_source(source, unpacked)
        form = _form(files[0])
    except UserError as error:
        if "of no known form" not in str(error):
            raise
    for place, row in read_rows(path):
        problem, answer = None, ""
        try:
            found = contract_row(row, source, form)
            problem = prompt_text(found["prompt"])
            answer = str(found["answer"]) if isinstance(found["answer"], str | int | float) else ""
        except (RecordError, KeyError, TypeError):
            lowered = small(row)
            problem = next((prompt_text(lowered[name]) for name in _COLUMNS if prompt_text(lowered.get(name))), None)
        if problem and problem.strip():
            yield f"{path.name}:{place.rpartition(':')[2]}", problem, answer


def _form(file: File) -> Any:
    from megatron_ring.curation.forms import ALL_FORMS

    return ALL_FORMS[file.form] if file.form else None
