"""Transformations of colour grids, the building blocks of ARC-style rules. Each takes a grid and returns a new one.

A grid is a rectangle of colours from 0 to 9; 0 is the background. A transformation returns None where it is not defined,
for example the largest object of a grid whose two largest objects are equally large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Grid = tuple[tuple[int, ...], ...]
Transformation = Callable[[Grid], Grid | None]
Cells = frozenset[tuple[int, int]]


def rotate(grid: Grid) -> Grid:
    """A quarter turn clockwise."""
    return tuple(zip(*grid[::-1], strict=True))


def half_turn(grid: Grid) -> Grid:
    """A half turn."""
    return mirror(flip(grid))


def rotate_back(grid: Grid) -> Grid:
    """A quarter turn counterclockwise."""
    return tuple(zip(*grid, strict=True))[::-1]


def mirror(grid: Grid) -> Grid:
    """Left and right exchanged."""
    return tuple(row[::-1] for row in grid)


def flip(grid: Grid) -> Grid:
    """Top and bottom exchanged."""
    return grid[::-1]


def transpose(grid: Grid) -> Grid:
    """Rows and columns exchanged."""
    return tuple(zip(*grid, strict=True))


def fall_left(grid: Grid) -> Grid:
    """Every coloured cell slides to the left until it meets the edge or another one."""
    rows = [tuple(cell for cell in row if cell) for row in grid]
    return tuple(row + (0,) * (len(grid[0]) - len(row)) for row in rows)


def fall_right(grid: Grid) -> Grid:
    """As `fall_left`, to the right."""
    return mirror(fall_left(mirror(grid)))


def fall_up(grid: Grid) -> Grid:
    """As `fall_left`, upwards."""
    return transpose(fall_left(transpose(grid)))


def fall_down(grid: Grid) -> Grid:
    """As `fall_left`, downwards: gravity."""
    return flip(fall_up(flip(grid)))


def crop(grid: Grid) -> Grid | None:
    """The smallest rectangle that holds all coloured cells."""
    return _cut(grid, frozenset((r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell))


def largest_object(grid: Grid) -> Grid | None:
    """The largest object alone, cut to its own rectangle."""
    return _object_at_end(grid, -1)


def smallest_object(grid: Grid) -> Grid | None:
    """The smallest object alone, cut to its own rectangle."""
    return _object_at_end(grid, 0)


def keep_largest(grid: Grid) -> Grid | None:
    """Every object but the largest becomes background."""
    ranked = _by_size(grid)
    if not ranked or (len(ranked) > 1 and len(ranked[-1]) == len(ranked[-2])):
        return None
    return tuple(tuple(cell if (r, c) in ranked[-1] else 0 for c, cell in enumerate(row)) for r, row in enumerate(grid))


def hollow(grid: Grid) -> Grid:
    """Of every object only the rim stays: cells whose four neighbours have the same colour become background."""
    height, width = len(grid), len(grid[0])

    def inside(r: int, c: int) -> bool:
        near = ((r - 1, c), (r + 1, c), (r, c - 1), (r, c + 1))
        return all(0 <= y < height and 0 <= x < width and grid[y][x] == grid[r][c] for y, x in near)

    return tuple(tuple(0 if cell and inside(r, c) else cell for c, cell in enumerate(row)) for r, row in enumerate(grid))


def complete_sideways(grid: Grid) -> Grid:
    """Symmetry completed: every background cell takes the colour of its mirror image, left to right."""
    return tuple(tuple(a or b for a, b in zip(row, row[::-1], strict=True)) for row in grid)


def complete_upright(grid: Grid) -> Grid:
    """Symmetry completed from top to bottom."""
    return transpose(complete_sideways(transpose(grid)))


def tile_sideways(grid: Grid) -> Grid:
    """Two copies side by side."""
    return tuple(row + row for row in grid)


def tile_upright(grid: Grid) -> Grid:
    """Two copies, one below the other."""
    return grid + grid


def tile_square(grid: Grid) -> Grid:
    """Two by two copies."""
    return tile_upright(tile_sideways(grid))


def unfold_sideways(grid: Grid) -> Grid:
    """The grid and its mirror image side by side."""
    return tuple(row + row[::-1] for row in grid)


def unfold_upright(grid: Grid) -> Grid:
    """The grid and its mirror image, one below the other."""
    return grid + grid[::-1]


def magnify(grid: Grid) -> Grid:
    """Every cell becomes two by two cells."""
    return tuple(tuple(cell for cell in row for _ in range(2)) for row in grid for _ in range(2))


def left_half(grid: Grid) -> Grid | None:
    """The left half of a grid with an even number of columns."""
    width = len(grid[0])
    return None if width % 2 else tuple(row[: width // 2] for row in grid)


def top_half(grid: Grid) -> Grid | None:
    """The upper half of a grid with an even number of rows."""
    return None if len(grid) % 2 else grid[: len(grid) // 2]


def frame(grid: Grid) -> Grid | None:
    """A border of one cell around the grid, in its rarest colour."""
    counts = Counter(cell for row in grid for cell in row if cell).most_common()
    if not counts or (len(counts) > 1 and counts[-1][1] == counts[-2][1]):
        return None
    colour = counts[-1][0]
    edge = ((colour,) * (len(grid[0]) + 2),)
    return edge + tuple((colour, *row, colour) for row in grid) + edge


def objects(grid: Grid) -> list[Cells]:
    """Connected areas (over edges) of one colour other than the background, in the order of their first cells."""
    owner: set[tuple[int, int]] = set()
    found = []
    for r, row in enumerate(grid):
        for c, colour in enumerate(row):
            if not colour or (r, c) in owner:
                continue
            area, stack = {(r, c)}, [(r, c)]
            while stack:
                y, x = stack.pop()
                for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= place[0] < len(grid) and 0 <= place[1] < len(row)
                    if inside and place not in area and grid[place[0]][place[1]] == colour:
                        area.add(place)
                        stack.append(place)
            owner |= area
            found.append(frozenset(area))
    return found


def _by_size(grid: Grid) -> list[Cells]:
    return sorted(objects(grid), key=len)


def _object_at_end(grid: Grid, end: int) -> Grid | None:
    """The object at one end of the order by size, where there are at least two and no other is as large."""
    ranked = _by_size(grid)
    if len(ranked) < 2 or len(ranked[end]) == len(ranked[1 if end == 0 else -2]):
        return None
    return _cut(grid, ranked[end])


def _cut(grid: Grid, cells: Cells) -> Grid | None:
    """The rectangle around some cells; what else lies in it becomes background."""
    if not cells:
        return None
    rows, columns = [r for r, _ in cells], [c for _, c in cells]
    return tuple(
        tuple(grid[r][c] if (r, c) in cells else 0 for c in range(min(columns), max(columns) + 1))
        for r in range(min(rows), max(rows) + 1)
    )


TRANSFORMATIONS: dict[str, Transformation] = {
    function.__name__: function
    for function in (
        *(rotate, half_turn, rotate_back, mirror, flip, transpose),
        *(fall_left, fall_right, fall_up, fall_down),
        *(crop, largest_object, smallest_object, keep_largest, hollow),
        *(complete_sideways, complete_upright),
        *(tile_sideways, tile_upright, tile_square, unfold_sideways, unfold_upright, magnify),
        *(left_half, top_half, frame),
    )
}
