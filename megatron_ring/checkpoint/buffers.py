"""Persistent buffers of the model's modules, which checkpoints carry beside its parameters.

A module declares one with `register_buffer`. Checkpoints hold it under its name, as they hold parameters. It is the same on
every rank that has the module; one that is split over ranks is described by the module's own `sharded_state_dict`. A module
names a buffer that older checkpoints lack in `optional_buffers`: loading such a checkpoint leaves it as the module made it.
"""

from __future__ import annotations

import zlib
from dataclasses import replace

from megatron_ring.checkpoint.pieces import Piece
from megatron_ring.checkpoint.safetensors_stream import raw_bytes
from megatron_ring.checkpoint.tensor_rules import Box
from megatron_ring.parallel import collectives


def agreed(pieces: list[Piece], rank: int) -> list[Piece]:
    """The pieces of process `rank`, each part of a buffer to be saved by the first process that holds it. All ranks take
    part.

    Raises:
        RuntimeError: processes hold different values of what is to be the same on all.
    """
    checksums = {
        (piece.key, piece.box): zlib.crc32(raw_bytes(piece.data.detach().cpu().contiguous()))
        for piece in pieces
        if piece.buffer
    }
    everyone = collectives.gather_over_world(checksums)
    first: dict[tuple[str, Box], int] = {}
    for other, held in enumerate(everyone):
        for part, checksum in held.items():
            holder = first.setdefault(part, other)
            if checksum != everyone[holder][part]:
                raise RuntimeError(f"{part[0]} differs between ranks {holder} and {other}, it must be the same on all")
    return [replace(p, saved_here=first[p.key, p.box] == rank) if p.buffer else p for p in pieces]
