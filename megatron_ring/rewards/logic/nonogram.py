"""Nonograms: fill cells so that the runs in every row and column have the given lengths. Clues are checked, not a picture.

The answer is the grid of # and . in the last fenced block. Generated puzzles have one solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from megatron_ring.rewards.logic.game import (
    Game,
    MalformedInstance,
    Violation,
    fenced,
    fenced_score,
    field_of,
    generator_of,
    make_problem,
    read_grid,
    require_shape,
    spaced,
    whole_number,
)

NAME = "nonogram"
FULL, EMPTY = "#."
MAX_SIDE = 30
# Difficulty -> (rows, columns, share of filled cells at least and at most).
LEVELS = {
    1: (4, 4, 0.5, 0.7),
    2: (5, 5, 0.5, 0.7),
    3: (6, 6, 0.45, 0.65),
    4: (8, 8, 0.45, 0.65),
    5: (10, 10, 0.5, 0.65),
}
_Clue = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Nonogram:
    """Lengths of the runs of each row from the left and of each column from the top; () for an empty line."""

    rows: tuple[_Clue, ...]
    columns: tuple[_Clue, ...]


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """Random pictures are drawn until one follows from its clues alone."""
    rng = generator_of(NAME, seed, difficulty)
    height, width, lightest, fullest = LEVELS[difficulty]
    while True:
        share = rng.uniform(lightest, fullest)
        grid = ["".join(FULL if rng.random() < share else EMPTY for _ in range(width)) for _ in range(height)]
        puzzle = Nonogram(tuple(map(runs, grid)), tuple(map(runs, zip(*grid, strict=True))))
        solutions = _solutions(puzzle)
        if next(solutions, None) is not None and next(solutions, None) is None:
            break
    clues = [
        f"{name} {number}: {' '.join(map(str, clue)) or '0'}"
        for name, lines in (("Row", puzzle.rows), ("Column", puzzle.columns))
        for number, clue in enumerate(lines, start=1)
    ]
    prompt = (
        f"Solve this nonogram with {height} rows and {width} columns. Every cell is filled (#) or empty (.). The numbers of "
        "a row are the lengths of its runs of filled cells from left to right, those of a column from top to bottom; two "
        "runs in a line have at least one empty cell between them, and 0 means that the line has no filled cell. Rows are "
        f"numbered from the top, columns from the left.\n\n{chr(10).join(clues)}\n\n"
        f"End with the complete grid in a block fenced by lines of three backticks: {height} lines of {width} symbols # or "
        ". separated by spaces, nothing else in the block. Only the last fenced block counts."
    )
    answer = {"rows": [list(clue) for clue in puzzle.rows], "columns": [list(clue) for clue in puzzle.columns]}
    return make_problem(NAME, seed, difficulty, prompt, answer, spaced(grid))


def runs(line: Sequence[str]) -> _Clue:
    """Lengths of the runs of filled cells in a line."""
    return tuple(len(list(group)) for cell, group in groupby(line) if cell == FULL)


def read_nonogram(answer: Any) -> Nonogram:
    """Check an instance. Raises `MalformedInstance`."""
    sides = []
    for name in ("rows", "columns"):
        lines = field_of(answer, name)
        if not isinstance(lines, list) or not 1 <= len(lines) <= MAX_SIDE:
            raise MalformedInstance(f"{name!r} must be a list of 1 to {MAX_SIDE} clues")
        if not all(isinstance(clue, list) for clue in lines):
            raise MalformedInstance(f"every clue of {name!r} must be a list of integers")
        sides.append(tuple(tuple(whole_number(run, name, 1, MAX_SIDE) for run in clue) for clue in lines))
    return Nonogram(sides[0], sides[1])


def check(puzzle: Nonogram, text: str) -> None:
    """Raise `Violation` unless the text is a grid whose runs are the clues."""
    grid = read_grid(text, FULL + EMPTY)
    require_shape(grid, len(puzzle.rows), len(puzzle.columns))
    for name, lines, clues in (("row", grid, puzzle.rows), ("column", list(zip(*grid, strict=True)), puzzle.columns)):
        for number, (line, clue) in enumerate(zip(lines, clues, strict=True), start=1):
            if runs(line) != clue:
                raise Violation(f"{name} {number} has the runs {_say(runs(line))}, not {_say(clue)}")


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` solutions."""
    puzzle = read_nonogram(answer)
    width = len(puzzle.columns)
    found = []
    for rows in _solutions(puzzle):
        found.append(spaced(["".join(FULL if row >> c & 1 else EMPTY for c in range(width)) for row in rows]))
        if len(found) == limit:
            break
    return found


def _say(clue: _Clue) -> str:
    return " ".join(map(str, clue)) or "0"


def _patterns(clue: _Clue, length: int) -> list[int]:
    """Every way to lay the runs into a line, as bits; bit 0 is its first cell."""
    if not clue:
        return [0]
    run, rest = clue[0], clue[1:]
    found = []
    for start in range(length - sum(clue) - len(rest) + 1):
        after = start + run + (1 if rest else 0)
        found += [((1 << run) - 1) << start | tail << after for tail in _patterns(rest, length - after)]
    return found


def _solutions(puzzle: Nonogram) -> Iterator[list[int]]:
    """All solutions, each a list of rows as bits."""
    height, width = len(puzzle.rows), len(puzzle.columns)
    lines = [_patterns(clue, width) for clue in puzzle.rows] + [_patterns(clue, height) for clue in puzzle.columns]
    yield from _search(lines, height)


def _search(lines: list[list[int]], height: int) -> Iterator[list[int]]:
    """Drop patterns that contradict cells which all patterns of a crossing line agree on; then try a line's patterns."""
    lines = list(lines)
    changed = True
    while changed:
        if not all(lines):
            return
        changed = False
        rows, columns = lines[:height], lines[height:]
        for mine, crossing, offset in ((rows, columns, 0), (columns, rows, height)):
            surely_full, surely_empty = _agreed(crossing, len(mine))
            for n, patterns in enumerate(mine):
                kept = [p for p in patterns if not (surely_full[n] & ~p) and not (surely_empty[n] & p)]
                changed = changed or len(kept) < len(patterns)
                lines[offset + n] = kept
    undecided = [n for n, patterns in enumerate(lines) if len(patterns) > 1]
    if not undecided:
        yield [patterns[0] for patterns in lines[:height]]
        return
    shortest = min(undecided, key=lambda n: len(lines[n]))
    for pattern in lines[shortest]:
        yield from _search([*lines[:shortest], [pattern], *lines[shortest + 1 :]], height)


def _agreed(crossing: Sequence[Sequence[int]], count: int) -> tuple[list[int], list[int]]:
    """For each of the `count` lines that cross these, bits of the cells that are surely full and surely empty."""
    full, empty = [0] * count, [0] * count
    for position, patterns in enumerate(crossing):
        in_all, in_any = -1, 0
        for pattern in patterns:
            in_all, in_any = in_all & pattern, in_any | pattern
        for n in range(count):
            full[n] |= (in_all >> n & 1) << position
            empty[n] |= (~in_any >> n & 1) << position
    return full, empty


GAME = Game(NAME, generate, fenced_score(read_nonogram, check), solve, fenced, read_nonogram)
