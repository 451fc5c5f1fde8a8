"""One line of JSON for each response, in a file of the main process: made by the replica that holds the response, and never
all in one process."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_ring.data.records import Message
from megatron_ring.data.writing import write_atomically
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.host_bytes import receive_over_data, send_over_data
from megatron_ring.rollout.records import ScoredRollout

Row = Callable[[int, ScoredRollout], dict[str, Any]]


def write_lines(path: Path, scored: Sequence[ScoredRollout], row: Row, context: ParallelContext) -> None:
    """Write `row(i, scored[i])` of all responses to `path`, in order. All ranks take part.

    Args:
        scored: the same on every rank.
        row: asked where the response is held. Of what JSON has no word for it may hold messages.

    Raises:
        UserError: on the main process, where it cannot be written.
    """
    pieces = _pieces(scored, row, context)
    try:
        if context.is_main:
            write_atomically(path, pieces)
    finally:
        for _ in pieces:  # others send theirs also where the file cannot be written
            pass


def _pieces(scored: Sequence[ScoredRollout], row: Row, context: ParallelContext) -> Iterator[bytes]:
    """The text of the file on the main process; nothing elsewhere."""
    if not context.leads_replica:
        return

    def line(i: int) -> bytes:
        return f"{json.dumps(row(i, scored[i]), default=Message.to_json)}\n".encode()

    if context.data_size == 1:
        yield from map(line, range(len(scored)))
        return
    holders = [item.rollout.holder for item in scored]
    # Before anything is sent: all replicas make their lines at the same time.
    lines = {i: line(i) for i, holder in enumerate(holders) if holder == context.data_rank}
    for holder, places in itertools.groupby(range(len(holders)), key=holders.__getitem__):
        if holder == context.data_rank:
            piece = b"".join(lines.pop(i) for i in places)
            if context.is_main:
                yield piece
            else:
                send_over_data(piece, 0)
        elif context.is_main:
            yield receive_over_data(holder)
