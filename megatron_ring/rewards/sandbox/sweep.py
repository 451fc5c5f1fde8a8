"""Removes what killed workers left behind: directories of solutions and control groups."""

from __future__ import annotations

import time

from megatron_ring.rewards.sandbox import boxes, cgroups


def sweep(seconds: float = 0.0) -> bool:
    """Remove what nobody holds any more, waiting up to `seconds` for runs that are dying; False where some still are."""
    boxes.sweep()
    deadline = time.monotonic() + seconds
    while not (clean := cgroups.sweep_all()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return clean
