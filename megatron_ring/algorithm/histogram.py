"""Counts of a metric's values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Counts of a metric's values: `counts[i]` lie from `edges[i]` to `edges[i + 1]`; the outer edges may be infinite. For
    TensorBoard alone."""

    edges: list[float]
    counts: list[int]
