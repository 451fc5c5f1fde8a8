r"""Mazes: walk from S to G through a grid of walls. Any valid path is accepted, or any shortest one where asked for.

The answer is a string of U, D, L and R in the last `\boxed{...}`.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_ring.rewards.logic.game import (
    Game,
    MalformedInstance,
    Violation,
    boxed,
    boxed_score,
    excerpt,
    fenced,
    field_of,
    generator_of,
    make_problem,
    spaced,
    text_grid,
)

NAME = "maze"
WALL, OPEN, START, GOAL = "#.SG"
MAX_SIDE = 50
STEPS = {"U": (-1, 0), "D": (1, 0), "L": (0, -1), "R": (0, 1)}
_NAMES = {"U": "up", "D": "down", "L": "left", "R": "right"}
_Place = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Maze:
    """Rows of `#` (wall), `.`, one `S` and one `G`; whether only a shortest path counts."""

    grid: tuple[str, ...]
    shortest: bool

    def place_of(self, symbol: str) -> _Place:
        """Row and column of the first cell with this symbol."""
        return next((r, row.index(symbol)) for r, row in enumerate(self.grid) if symbol in row)

    def is_open(self, place: _Place) -> bool:
        """Whether the cell lies in the grid and is no wall."""
        r, c = place
        return 0 <= r < len(self.grid) and 0 <= c < len(self.grid[0]) and self.grid[r][c] != WALL


@dataclass(frozen=True, slots=True)
class Level:
    """Chambers a side, the share of inner walls that are opened to make loops, whether a shortest path may be asked."""

    chambers: int
    loops: float
    may_ask_shortest: bool


LEVELS = {
    1: Level(3, 0.0, False),
    2: Level(4, 0.1, True),
    3: Level(6, 0.1, True),
    4: Level(8, 0.1, True),
    5: Level(11, 0.12, True),
}


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """A maze of chambers: a random spanning tree, some walls opened; the goal in the farther half of the cells."""
    rng = generator_of(NAME, seed, difficulty)
    level = LEVELS[difficulty]
    cells = _carve(rng, level)
    shortest = level.may_ask_shortest and rng.random() < 0.5
    chambers = [(r, c) for r in range(1, len(cells), 2) for c in range(1, len(cells), 2)]
    start = rng.choice(chambers)
    cells[start[0]][start[1]] = START
    away = distances(Maze(tuple(map("".join, cells)), shortest), start)
    by_distance = sorted(chambers, key=lambda place: away[place])
    goal = rng.choice(by_distance[len(by_distance) // 2 :])
    cells[goal[0]][goal[1]] = GOAL
    maze = Maze(tuple(map("".join, cells)), shortest)
    asked = "Only a path with the fewest possible moves counts." if shortest else "Any such path counts, short or long."
    prompt = (
        "Find a way through this maze. # is a wall, . is free, S is the start and G the goal. A move goes one cell up (U), "
        "down (D), left (L) or right (R), never diagonally, never into a wall and never out of the grid. The path begins at "
        f"S and its last move ends at G. {asked}\n\n{fenced(spaced(maze.grid))}\n\n"
        "Give the moves in order as letters U, D, L, R alone in \\boxed{}, such as \\boxed{RRDL}."
    )
    answer = {"grid": list(maze.grid), "shortest": shortest}
    witness = next(_shortest_paths(maze))
    return make_problem(NAME, seed, difficulty, prompt, answer, witness, distance=len(witness))


def read_maze(answer: Any) -> Maze:
    """Check an instance. Raises `MalformedInstance`."""
    grid = text_grid(field_of(answer, "grid"), "grid", WALL + OPEN + START + GOAL, MAX_SIDE)
    shortest = field_of(answer, "shortest")
    if not isinstance(shortest, bool):
        raise MalformedInstance("'shortest' must be true or false")
    for symbol in START + GOAL:
        if sum(row.count(symbol) for row in grid) != 1:
            raise MalformedInstance(f"'grid' must hold exactly one {symbol}")
    return Maze(grid, shortest)


def check(maze: Maze, text: str) -> None:
    """Raise `Violation` unless the moves lead from the start to the goal, on a shortest path where that is asked."""
    moves = [move for move in text if move not in " \t\r\n"]
    r, c = maze.place_of(START)
    for number, move in enumerate(moves, start=1):
        if move not in STEPS:
            raise Violation(f"move {number}: {excerpt(move)} is not one of U, D, L, R")
        r, c = r + STEPS[move][0], c + STEPS[move][1]
        if not maze.is_open((r, c)):
            inside = 0 <= r < len(maze.grid) and 0 <= c < len(maze.grid[0])
            raise Violation(f"move {number} ({_NAMES[move]}) {'runs into a wall' if inside else 'leaves the grid'}")
    if maze.grid[r][c] != GOAL:
        raise Violation(f"the path ends at row {r + 1}, column {c + 1}, not at the goal")
    if maze.shortest:
        fewest = distances(maze, maze.place_of(START))[r, c]
        if len(moves) != fewest:
            raise Violation(f"the path has {len(moves)} moves, the shortest has {fewest}")


def distances(maze: Maze, start: _Place) -> dict[_Place, int]:
    """Moves from `start` to every cell that can be reached."""
    away, queue = {start: 0}, deque([start])
    while queue:
        r, c = queue.popleft()
        for down, right in STEPS.values():
            place = (r + down, c + right)
            if place not in away and maze.is_open(place):
                away[place] = away[r, c] + 1
                queue.append(place)
    return away


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` shortest paths, and then, where any path counts, longer ones: a detour by one step and back."""
    maze = read_maze(answer)
    found: list[str] = []
    for path in _shortest_paths(maze):
        if len(found) == limit:
            return found
        found.append(path)
    if not maze.shortest:
        back = {"U": "D", "D": "U", "L": "R", "R": "L"}
        detours = (path[:1] + back[path[0]] + path for path in list(found))
        found += [path for path in detours][: limit - len(found)]
    return found


def _shortest_paths(maze: Maze) -> Iterator[str]:
    """All shortest paths, walked from the start along falling distance to the goal; none where there is no way."""
    away = distances(maze, maze.place_of(GOAL))
    start = maze.place_of(START)
    stack = [(start, "")] if start in away else []
    while stack:
        (r, c), path = stack.pop()
        if away[r, c] == 0:
            yield path
        for move, (down, right) in STEPS.items():
            place = (r + down, c + right)
            if away.get(place) == away[r, c] - 1:
                stack.append((place, path + move))


def _carve(rng: random.Random, level: Level) -> list[list[str]]:
    """Chambers at odd places, joined by a depth-first walk, then some of the walls between chambers opened."""
    side = 2 * level.chambers + 1
    cells = [[WALL] * side for _ in range(side)]
    start = (2 * rng.randrange(level.chambers) + 1, 2 * rng.randrange(level.chambers) + 1)
    cells[start[0]][start[1]] = OPEN
    stack = [start]
    while stack:
        r, c = stack[-1]
        closed = [
            (down, right)
            for down, right in STEPS.values()
            if 0 < r + 2 * down < side and 0 < c + 2 * right < side and cells[r + 2 * down][c + 2 * right] == WALL
        ]
        if not closed:
            stack.pop()
            continue
        down, right = rng.choice(closed)
        cells[r + down][c + right] = cells[r + 2 * down][c + 2 * right] = OPEN
        stack.append((r + 2 * down, c + 2 * right))
    for r in range(1, side - 1):
        for c in range(1, side - 1):
            if (r + c) % 2 and cells[r][c] == WALL and rng.random() < level.loops:
                cells[r][c] = OPEN
    return cells


GAME = Game(NAME, generate, boxed_score(read_maze, check), solve, boxed, read_maze)
