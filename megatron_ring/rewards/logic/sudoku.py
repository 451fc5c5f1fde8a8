"""Sudoku of 4x4, 6x6 and 9x9 cells. The verifier checks rows, columns, boxes and givens, not a stored solution.

The answer is the filled grid in the last fenced block. Generated puzzles have one solution.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
    text_grid,
)

NAME = "sudoku"
BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a box
BLANK = "."
# Difficulty -> (size, cells that are blanked at most: as many of them as keep the solution unique).
LEVELS = {1: (4, 8), 2: (6, 18), 3: (9, 36), 4: (9, 48), 5: (9, 81)}


@dataclass(frozen=True, slots=True)
class Sudoku:
    """Rows of the puzzle, digits from 1 to the size and `BLANK`."""

    givens: tuple[str, ...]

    @property
    def size(self) -> int:
        """Cells a side."""
        return len(self.givens)


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """A puzzle with one solution: a random full grid, blanked cell by cell where the solution stays unique."""
    rng = generator_of(NAME, seed, difficulty)
    size, blanks = LEVELS[difficulty]
    solution = next(_solutions([0] * size**2, size, rng))
    cells = list(solution)
    for cell in rng.sample(range(size**2), size**2):
        if cells.count(0) == blanks:
            break
        # Still unique unless some other digit in this cell leads to a solution: cheaper than counting solutions anew.
        others = [digit for digit in range(1, size + 1) if digit != cells[cell]]
        if not any(_solvable_with(cells, size, cell, digit) for digit in others):
            cells[cell] = 0
    givens, witness = _rows(cells, size), _rows(solution, size)
    height, width = BOXES[size]
    prompt = (
        f"Solve this {size}x{size} Sudoku. Fill every blank (.) with a digit from 1 to {size} so that each row, each column "
        f"and each of the {size} boxes of {height} rows by {width} columns holds every digit from 1 to {size} exactly once. "
        f"The digits that are given stay where they are.\n\n{fenced(spaced(givens))}\n\n"
        f"End with the complete grid in a block fenced by lines of three backticks: {size} lines of {size} digits separated "
        "by spaces, nothing else in the block. Only the last fenced block counts."
    )
    return make_problem(NAME, seed, difficulty, prompt, {"givens": givens}, spaced(witness), blanks=cells.count(0))


def read_sudoku(answer: Any) -> Sudoku:
    """Check an instance. Raises `MalformedInstance`."""
    givens = text_grid(field_of(answer, "givens"), "givens", BLANK + "123456789", max(BOXES))
    size = len(givens)
    if size not in BOXES or any(len(row) != size for row in givens):
        raise MalformedInstance("'givens' must be a square of 4, 6 or 9 rows")
    if any(cell != BLANK and int(cell) > size for row in givens for cell in row):
        raise MalformedInstance(f"'givens' may hold only {BLANK} and digits from 1 to {size}")
    return Sudoku(givens)


def check(puzzle: Sudoku, text: str) -> None:
    """Raise `Violation` unless the text is a complete grid that keeps the givens and all the rules."""
    size = puzzle.size
    grid = read_grid(text, "123456789"[:size])
    require_shape(grid, size, size)
    for r, row in enumerate(grid):
        for c, cell in enumerate(row):
            if puzzle.givens[r][c] not in (BLANK, cell):
                raise Violation(f"row {r + 1}, column {c + 1}: the given {puzzle.givens[r][c]} became {cell}")
    for name, cells in units(size):
        digits = sorted(grid[r][c] for r, c in cells)
        twice = next((a for a, b in pairwise(digits) if a == b), None)
        if twice is not None:
            raise Violation(f"{name} holds {twice} more than once")


def units(size: int) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Every row, column and box with its cells (row, column)."""
    height, width = BOXES[size]
    for n in range(size):
        yield f"row {n + 1}", [(n, c) for c in range(size)]
        yield f"column {n + 1}", [(r, n) for r in range(size)]
        top, left = n // (size // width) * height, n % (size // width) * width
        yield f"box {n + 1}", [(top + r, left + c) for r in range(height) for c in range(width)]


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` solutions, by search with the most constrained cell first."""
    puzzle = read_sudoku(answer)
    found = []
    for solution in _solutions([0 if cell == BLANK else int(cell) for row in puzzle.givens for cell in row], puzzle.size):
        found.append(spaced(_rows(solution, puzzle.size)))
        if len(found) == limit:
            break
    return found


def _rows(cells: Sequence[int], size: int) -> list[str]:
    return ["".join(str(digit) if digit else BLANK for digit in cells[r * size : (r + 1) * size]) for r in range(size)]


def _solvable_with(cells: Sequence[int], size: int, cell: int, digit: int) -> bool:
    changed = list(cells)
    changed[cell] = digit
    return next(_solutions(changed, size), None) is not None


def _solutions(cells: Sequence[int], size: int, rng: random.Random | None = None) -> Iterator[list[int]]:
    """All completions of a grid (row by row, 0 is blank), in random order of digits where `rng` is given."""
    height, width = BOXES[size]
    places = [(n // size, size + n % size, 2 * size + n // size // height * (size // width) + n % size // width)
              for n in range(size**2)]  # fmt: skip
    free = [(1 << size) - 1] * (3 * size)  # bits of the digits that each row, column and box still lacks
    work = list(cells)
    for cell, digit in enumerate(work):
        if digit:
            bit = 1 << (digit - 1)
            if not all(free[unit] & bit for unit in places[cell]):
                return  # two givens contradict each other
            for unit in places[cell]:
                free[unit] ^= bit

    def complete(blanks: list[int]) -> Iterator[list[int]]:
        if not blanks:
            yield list(work)
            return
        best, best_options, fewest = -1, 0, size + 1
        for cell in blanks:
            row, column, box = places[cell]
            options = free[row] & free[column] & free[box]
            if options.bit_count() < fewest:
                best, best_options, fewest = cell, options, options.bit_count()
                if fewest <= 1:
                    break
        if fewest == 0:
            return
        rest = [cell for cell in blanks if cell != best]
        digits = [digit for digit in range(1, size + 1) if best_options >> (digit - 1) & 1]
        if rng is not None:
            rng.shuffle(digits)
        for digit in digits:
            work[best] = digit
            for unit in places[best]:
                free[unit] ^= 1 << (digit - 1)
            yield from complete(rest)
            for unit in places[best]:
                free[unit] ^= 1 << (digit - 1)
        work[best] = 0

    yield from complete([cell for cell, digit in enumerate(work) if not digit])


GAME = Game(NAME, generate, fenced_score(read_sudoku, check), solve, fenced, read_sudoku)
