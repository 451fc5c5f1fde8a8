"""Near duplicates: MinHash with locality-sensitive hashing proposes pairs, their Jaccard similarity decides.

Plain text is compared by its word n-grams, text with much LaTeX or Chinese by its character n-grams, and text in between by
both. A band's hash also takes in the numbers, signs and turning words of a problem (`meaning`): two problems of one
template with other numbers never meet. Signatures stay on disk; one band of all rows is in memory at a time.
"""

from __future__ import annotations

import functools
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_ring.curation.grouping import AllRows, Decision, Run, Signature, priority
from megatron_ring.curation.meaning import Meaning, meaning, strict_meaning
from megatron_ring.curation.options import Near
from megatron_ring.curation.store import Row, Shard
from megatron_ring.curation.text import calls_text, latex_share, prompt_text, words
from megatron_ring.curation.union_find import UnionFind

SEED = 1
PLAIN, FORMULAS = 0.10, 0.25  # shares of LaTeX: words below the first, characters above the second, both in between
MAX_KINDS = 8  # of rows in one bucket that are not similar, with which further ones are compared
MAX_COMPARED = 64  # kept rows of one group that a further one is compared with
_CACHED = 20_000  # rows whose n-grams are in memory
_PARTS, _PAIRS = 64, 200  # of all comparisons, at most; pairs of a part, at least


class NearDuplicates:
    """Finds them."""

    def __init__(self, options: Near) -> None:
        self._options = options

    def sign(self, rows: Sequence[Row]) -> Signature:
        """`words`, `characters`: [bands, rows] hashes, 0 where a row has none of this kind; `priority`: [rows]."""
        options = self._options
        plain = np.zeros((options.word_bands, len(rows)), np.uint64)
        formulas = np.zeros((options.character_bands, len(rows)), np.uint64)
        for place, row in enumerate(rows):
            text = prompt_text(row["prompt"])
            tokens, share = words(text), latex_share(text)
            if not tokens:
                continue
            salt = _hash(strict_meaning(tokens)) if options.numbers else 0
            if called := calls_text(row):
                salt ^= _hash(called)
            if share < FORMULAS:
                plain[:, place] = _bands(word_grams(tokens, options.words), options.word_bands, options.word_rows, salt)
            if share >= PLAIN:
                grams = character_grams(tokens, options.characters)
                formulas[:, place] = _bands(grams, options.character_bands, options.character_rows, salt)
        return {"words": plain, "characters": formulas, "priority": priority(rows, options.prefer)}

    def decide(self, rows: AllRows, run: Run) -> Iterable[Decision]:
        linked, pairs, values = _compared(self._options, rows, run)
        similarity = _Similarity(rows, self._options, _Known(len(rows), pairs, values))
        # Where all pairs that link some rows are similar, these are a set. The others are gone through again.
        fits, names = values >= self._options.threshold, linked.roots()
        open_ones = np.isin(names, names[pairs[~fits, 0]])
        sets = UnionFind(len(rows))
        for one, other in pairs[~open_ones[pairs[:, 0]]].tolist():
            sets.union(one, other)
        for bucket in _unsettled(rows, sets, open_ones) if open_ones.any() else ():
            self._join(bucket, sets, similarity)
        ranks = rows.column("priority")
        for group in sets.groups():
            yield from self._within(sorted(group, key=lambda member: (int(ranks[member]), member)), similarity)

    def _join(self, bucket: list[int], sets: UnionFind, similarity: _Similarity) -> None:
        """Join each row of a bucket with one that is similar: with the first of each kind that the bucket holds."""
        kinds: list[int] = []
        for member in bucket:
            known = {sets.find(kind) for kind in kinds}
            if sets.find(member) in known:
                continue
            found = next((kind for kind in kinds if similarity(kind, member) >= self._options.threshold), None)
            if found is not None:
                sets.union(found, member)
            elif len(kinds) < MAX_KINDS:
                kinds.append(member)

    def _within(self, group: list[int], similarity: _Similarity) -> Iterator[Decision]:
        """A row goes where one that stays is similar to it itself, not only by way of others."""
        staying = group[:1]
        for member in group[1:]:
            best, found = max((similarity(kept, member), -place) for place, kept in enumerate(staying[:MAX_COMPARED]))
            if best >= self._options.threshold:
                yield Decision(member, "near_duplicate", staying[-found], f"similarity {best:.3f}: a near copy")
            else:
                staying.append(member)


class _Known:
    """Similarities that have been computed, of pairs of rows.

    Args:
        size: number of rows.
        pairs: int64 [pairs, 2], the smaller number first, no pair twice.
        values: of each pair.
    """

    def __init__(self, size: int, pairs: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        keys = pairs[:, 0] * size + pairs[:, 1]
        order = np.argsort(keys)
        self._size, self._keys, self._values = size, keys[order], values[order]

    def find(self, one: int, other: int) -> float | None:
        """Of one pair; None where it has not been computed."""
        key = min(one, other) * self._size + max(one, other)
        place = int(np.searchsorted(self._keys, key))
        return float(self._values[place]) if place < len(self._keys) and self._keys[place] == key else None


def _compared(options: Near, rows: AllRows, run: Run) -> tuple[UnionFind, NDArray[np.int64], NDArray[np.float64]]:
    """Pairs that are asked for first, int64 [pairs, 2], the rows that they link, and their similarities, computed side by
    side: a row with the first of its bucket, unless earlier pairs link the two already."""
    sets, found = UnionFind(len(rows)), array("q")
    for first, *others in _unsettled(rows, sets):
        for member in others:
            if sets.find(first) != sets.find(member):
                sets.union(first, member)
                found.extend((first, member))
    pairs = np.array(found, np.int64).reshape(-1, 2)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]  # neighbours have a row in common
    parts = np.array_split(pairs, max(1, min(_PARTS, len(pairs) // _PAIRS)))
    values = run([(compare, (options, rows.shards, rows.folder, part)) for part in parts])
    return sets, pairs, np.concatenate(values)


def compare(options: Near, shards: Sequence[Shard], folder: Path, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The similarity of each pair of rows."""
    similarity = _Similarity(AllRows(shards, folder), options)
    return np.array([similarity(one, other) for one, other in pairs.tolist()], np.float64)


class _Similarity:
    """The Jaccard similarity of two rows' n-grams: of words or characters, whichever is larger among those that both are
    compared by. `known`: what need not be computed."""

    def __init__(self, rows: AllRows, options: Near, known: _Known | None = None) -> None:
        self._rows, self._options, self._known = rows, options, known
        self._grams = functools.lru_cache(maxsize=_CACHED)(self._read)

    def _read(self, index: int) -> tuple[Meaning, frozenset[str], frozenset[str]]:
        text = prompt_text(self._rows.row(index)["prompt"])
        tokens, share = words(text), latex_share(text)
        plain = frozenset(word_grams(tokens, self._options.words)) if share < FORMULAS else frozenset()
        formulas = frozenset(character_grams(tokens, self._options.characters)) if share >= PLAIN else frozenset()
        return meaning(tokens), plain, formulas

    def __call__(self, one: int, other: int) -> float:
        known = None if self._known is None else self._known.find(one, other)
        if known is not None:
            return known
        (said, *grams), (also, *others) = self._grams(one), self._grams(other)
        if self._options.numbers and not said.fits(also):
            return 0.0
        return max(jaccard(a, b) for a, b in zip(grams, others, strict=True))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared members over all members; 0 where a set is empty."""
    if not one or not other:
        return 0.0
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def word_grams(tokens: list[str], size: int) -> list[str]:
    """All runs of `size` tokens; a shorter text is one run."""
    return [" ".join(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1))]


def character_grams(tokens: list[str], size: int) -> list[str]:
    """All runs of `size` characters of the tokens with spaces between them; a shorter text is one run."""
    text = " ".join(tokens)
    return [text[i : i + size] for i in range(max(1, len(text) - size + 1))]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@functools.cache
def _multipliers(rows: int) -> NDArray[np.uint64]:
    """Odd numbers by which the hashes of a band become one."""
    return np.random.default_rng(SEED).integers(0, 2**63, rows, np.uint64) * np.uint64(2) + np.uint64(1)


def _bands(grams: list[str], bands: int, rows: int, salt: int) -> NDArray[np.uint64]:
    """[bands] hashes of a text's MinHash signature, none of them 0."""
    from rensa import RMinHash

    signature = RMinHash(num_perm=bands * rows, seed=SEED)
    signature.update(grams)
    values = np.array(signature.digest(), np.uint64).reshape(bands, rows)
    mixed = (values * _multipliers(rows)).sum(axis=1, dtype=np.uint64) ^ np.uint64(salt)
    return mixed | np.uint64(1)


def _unsettled(rows: AllRows, sets: UnionFind, only: NDArray[np.bool_] | None = None) -> Iterator[list[int]]:
    """Of every band the buckets whose rows are not all in one set when it begins, each in ascending order; of all rows or of
    these `only`."""
    for name in ("words", "characters"):
        if not rows.column(name, 0).any():  # no text is of this kind
            continue
        for band in range(rows.lines(name)):
            hashes = rows.column(name, band)
            yield from buckets(hashes if only is None else hashes * only, sets.roots())


def buckets(band: NDArray[np.uint64], sets: NDArray[np.int64]) -> Iterator[list[int]]:
    """Rows with the same hash other than 0, in ascending order: groups that are of more than one set.

    Args:
        band: [rows] hashes.
        sets: [rows] names of the rows' sets.
    """
    places = np.flatnonzero(band)
    order = places[np.argsort(band[places], kind="stable")]
    values, names = band[order], sets[order]
    begins = np.concatenate([[True], values[1:] != values[:-1]])
    mixed = ~begins[1:] & (names[1:] != names[:-1])
    wanted = np.unique(np.cumsum(begins)[1:][mixed]) - 1
    starts = np.append(np.flatnonzero(begins), len(order))
    for start, end in zip(starts[wanted].tolist(), starts[wanted + 1].tolist(), strict=True):
        yield order[start:end].tolist()
