"""Which conversations of a store go together into which pack, computed once and mapped from then on.

A file `packs-LIMIT-CAPACITY-SEED.bin` in the store's folder: a line of JSON (figures, and a checksum of all), then int32
[conversations] (their numbers, pack by pack), then int64 [packs + 1] (where each pack begins). It appears whole or not at
all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_ring.corpus.token_cache import locked
from megatron_ring.corpus.token_store import TokenStore
from megatron_ring.data.packing import plan_packs
from megatron_ring.data.writing import write_atomically

_LET_GO = 4096  # conversations between two times that the system may take back what was read


@dataclass(frozen=True)
class PackFigures:
    """What is known of the conversations of at most LIMIT tokens.

    Attributes:
        sequences: how many.
        tokens, loss_tokens: of all of them; the latter those that count in the loss.
        fingerprint: 32 hex digits of all tokens and of which are trained, in order.
        packs: how many.
    """

    sequences: int
    tokens: int
    loss_tokens: int
    fingerprint: str
    packs: int


class Packs(Sequence[Sequence[int]]):
    """The numbers of each pack's conversations: `items`, pack by pack, cut at `starts`. `figures` of all."""

    def __init__(self, figures: PackFigures, items: np.ndarray, starts: np.ndarray) -> None:
        self.figures, self.items, self.starts = figures, items, starts

    def __len__(self) -> int:
        return self.figures.packs

    def __getitem__(self, pack: int) -> list[int]:  # type: ignore[override]
        found: list[int] = self.items[self.starts[pack] : self.starts[pack + 1]].tolist()
        return found


def open_packs(store: TokenStore, limit: int, capacity: int, seed: int, tell: Callable[[str], None]) -> Packs:
    """The packs of the conversations of at most `limit` tokens: from the store's folder, or computed, and written to it
    where that can be. There must be one conversation. Raises `DamagedStoreError` where the store is damaged."""
    path = store.folder / f"packs-{limit}-{capacity}-{seed}.bin"
    found = _read(path)
    if found is not None:
        return found
    if not os.access(store.folder, os.W_OK):
        return _computed(store, limit, capacity, seed)
    waiting = functools.partial(tell, f"{path}: another process packs: waiting")
    with locked(store.folder.with_name(f"{store.folder.name}.lock"), waiting):
        found = _read(path)
        if found is None:
            found = _computed(store, limit, capacity, seed)
            _write(path, found)
    return _read(path) or found


def _computed(store: TokenStore, limit: int, capacity: int, seed: int) -> Packs:
    kept = np.flatnonzero(store.lengths <= limit).astype(np.int32)
    packs = plan_packs(store.lengths[kept].tolist(), capacity, seed)
    sizes = np.fromiter((len(pack) for pack in packs), np.int64, len(packs))
    starts = np.concatenate(([0], np.cumsum(sizes)))
    items = kept[np.fromiter((item for pack in packs for item in pack), np.int32, len(kept))]
    digest = hashlib.blake2b(digest_size=16)
    loss_tokens = 0
    for place, number in enumerate(kept.tolist()):
        tokens, mask = store.read(number)
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes() + mask.tobytes())
        loss_tokens += int(np.count_nonzero(mask[1:]))
        if place % _LET_GO == 0:
            store.let_go()
    figures = PackFigures(
        len(kept), int(store.lengths[kept].sum(dtype=np.int64)), loss_tokens, digest.hexdigest(), len(packs)
    )
    return Packs(figures, items, starts)


def _digest_of(packs: Packs) -> str:
    digest = hashlib.blake2b(json.dumps(asdict(packs.figures)).encode(), digest_size=16)
    digest.update(packs.items.tobytes() + packs.starts.tobytes())
    return digest.hexdigest()


def _write(path: Path, packs: Packs) -> None:
    head = {**asdict(packs.figures), "check": _digest_of(packs)}
    write_atomically(path, [json.dumps(head).encode() + b"\n", packs.items.tobytes(), packs.starts.tobytes()])


def _read(path: Path) -> Packs | None:
    """None where there is no such file, and where it is not what was written."""
    try:
        with path.open("rb") as stream:
            head = json.loads(stream.readline(4096))
            begin = stream.tell()
        check, figures = head.pop("check"), PackFigures(**head)
        if path.stat().st_size != begin + figures.sequences * 4 + (figures.packs + 1) * 8:
            return None
        items = np.memmap(path, "<i4", "r", begin, (figures.sequences,))
        starts = np.memmap(path, "<i8", "r", begin + figures.sequences * 4, (figures.packs + 1,))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    found = Packs(figures, items, starts)
    return found if _digest_of(found) == check else None
