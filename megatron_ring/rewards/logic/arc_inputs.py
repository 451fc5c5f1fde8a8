"""Random input grids for ARC-style tasks, of a kind that shows what a transformation does."""

from __future__ import annotations

import random
from collections.abc import Sequence

from megatron_ring.rewards.logic.arc_transforms import Grid, mirror, transpose

_SMALL = {"tile_sideways", "tile_upright", "tile_square", "unfold_sideways", "unfold_upright", "magnify", "frame"}
_OBJECTS = {"crop", "largest_object", "smallest_object", "keep_largest", "hollow"}


def draw_input(rng: random.Random, first: str, palette: Sequence[int], most: int) -> Grid:
    """An input for a rule whose first transformation is `first`, with colours of the palette, at most `most` cells a side.

    Symmetry is completed in symmetric pictures with a hole, objects are extracted from scenes of objects, the rest is
    done to scattered cells.
    """
    if first == "complete_sideways":
        return _symmetric(rng, palette, most)
    if first == "complete_upright":
        return transpose(_symmetric(rng, palette, most))
    if first in _OBJECTS:
        return _scene(rng, palette, most)
    largest = min(most, 5) if first in _SMALL else most
    height, width = (rng.randint(3, largest) for _ in range(2))
    if first == "left_half":
        width = 2 * rng.randint(2, max(2, most // 2))
    if first == "top_half":
        height = 2 * rng.randint(2, max(2, most // 2))
    return _scattered(rng, palette, height, width)


def _scattered(rng: random.Random, palette: Sequence[int], height: int, width: int) -> Grid:
    share = rng.uniform(0.35, 0.7)
    return tuple(tuple(rng.choice(palette) if rng.random() < share else 0 for _ in range(width)) for _ in range(height))


def _symmetric(rng: random.Random, palette: Sequence[int], most: int) -> Grid:
    """Left and right alike, but for a hole on one side; the other cells are all coloured."""
    height, half = rng.randint(3, most), rng.randint(2, max(2, most // 2))
    left = [[rng.choice(palette) for _ in range(half)] for _ in range(height)]
    rows = [[*row, *row[::-1]] for row in left]
    top, tall = rng.randrange(height - 1), rng.randint(2, max(2, height // 2))
    begin, wide = rng.randrange(half), rng.randint(1, half)
    for r in range(top, min(top + tall, height)):
        for c in range(begin, min(begin + wide, half)):
            rows[r][c] = 0
    grid = tuple(map(tuple, rows))
    return mirror(grid) if rng.random() < 0.5 else grid


def _scene(rng: random.Random, palette: Sequence[int], most: int) -> Grid:
    """A few irregular objects of one colour each that do not touch, on a wide background."""
    height, width = (rng.randint(max(5, most - 4), max(6, most)) for _ in range(2))
    cells = [[0] * width for _ in range(height)]
    for _ in range(rng.randint(2, 4)):
        tall, wide = rng.randint(1, 4), rng.randint(1, 4)
        top, left = rng.randrange(max(1, height - tall)), rng.randrange(max(1, width - wide))
        area = [(r, c) for r in range(top, min(top + tall, height)) for c in range(left, min(left + wide, width))]
        around = {(r + y, c + x) for r, c in area for y in (-1, 0, 1) for x in (-1, 0, 1)}
        if any(0 <= r < height and 0 <= c < width and cells[r][c] for r, c in around):
            continue
        colour = rng.choice(palette)
        # A corner is missing now and then: not only rectangles.
        missing = rng.choice([None, area[0], area[-1]]) if len(area) > 3 else None
        for r, c in area:
            if (r, c) != missing:
                cells[r][c] = colour
    return tuple(map(tuple, cells))
