"""ARC-style tasks: find the rule behind pairs of grids and apply it to another grid. The grid must match exactly.

A rule is a chain of transformations, then perhaps a change of colours. The generator searches all chains of the rule's
length or less: no shorter one explains the examples, and all that do predict the same test output. Rows with an `answer`
of ARC's own JSON (`output`, a list of rows of integers) are verified alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.rewards.logic.arc_inputs import draw_input
from megatron_ring.rewards.logic.arc_transforms import TRANSFORMATIONS, Grid
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

NAME = "arc"
MAX_SIDE = 30
_COLOURS = "0123456789"
_LARGEST_DRAWN = 20  # cells a side of a generated grid


@dataclass(frozen=True, slots=True)
class Rule:
    """Names of transformations, applied in order, and then colours that are replaced."""

    steps: tuple[str, ...]
    colours: Mapping[int, int]

    def __call__(self, grid: Grid) -> Grid | None:
        """The grid transformed; None where a step is not defined."""
        current: Grid | None = grid
        for step in self.steps:
            current = apply(step, current) if current is not None else None
        return current if current is None else recolour(current, self.colours)


@dataclass(frozen=True, slots=True)
class Task:
    """Example pairs and the test input."""

    examples: tuple[tuple[Grid, Grid], ...]
    test: Grid


@dataclass(frozen=True, slots=True)
class Level:
    """Steps of a rule, colours that it replaces, cells a side of an input, example pairs."""

    steps: int
    replaced: int
    most: int
    examples: int


LEVELS = {1: Level(1, 0, 5, 3), 2: Level(1, 2, 6, 3), 3: Level(2, 0, 7, 3), 4: Level(2, 2, 8, 4), 5: Level(3, 2, 8, 4)}


def generate(seed: int, difficulty: int) -> dict[str, Any]:
    """Rules and grids are drawn until the examples settle what the test output is."""
    rng = generator_of(NAME, seed, difficulty)
    level = LEVELS[difficulty]
    while True:
        rule = _draw_rule(rng, level)
        drawn = _draw_task(rng, rule, level)
        if drawn is not None and _is_settled(drawn[0], drawn[1], len(rule.steps)):
            break
    task, expected = drawn
    pairs = [
        f"Example {number}\nInput:\n{_written(given)}\nOutput:\n{_written(made)}"
        for number, (given, made) in enumerate(task.examples, start=1)
    ]
    prompt = (
        "Each example shows an input grid and the output grid that one fixed rule makes of it. The digits are colours, 0 is "
        f"the background. Find the rule and apply it to the test input.\n\n{(chr(10) * 2).join(pairs)}\n\n"
        f"Test input:\n{_written(task.test)}\n\n"
        "End with the complete output grid in a block fenced by lines of three backticks: one line for each row, its digits "
        "separated by spaces, nothing else in the block. Only the last fenced block counts."
    )
    examples = [{"input": _as_lists(given), "output": _as_lists(made)} for given, made in task.examples]
    answer = {"train": examples, "input": _as_lists(task.test), "output": _as_lists(expected)}
    colours = {str(old): new for old, new in rule.colours.items()}
    return make_problem(NAME, seed, difficulty, prompt, answer, _written(expected), rule=list(rule.steps), colours=colours)


def read_output(answer: Any) -> Grid:
    """The expected grid of an instance. Raises `MalformedInstance`."""
    return read_colours(field_of(answer, "output"), "output")


def read_colours(value: Any, name: str) -> Grid:
    """A grid of ARC's JSON. Raises `MalformedInstance`."""
    rows = value if isinstance(value, list) else []
    if not 1 <= len(rows) <= MAX_SIDE or not all(isinstance(row, list) and 1 <= len(row) <= MAX_SIDE for row in rows):
        raise MalformedInstance(f"{name!r} must be a list of 1 to {MAX_SIDE} rows of 1 to {MAX_SIDE} colours")
    if len({len(row) for row in rows}) > 1:
        raise MalformedInstance(f"the rows of {name!r} must be equally long")
    return tuple(tuple(whole_number(cell, name, 0, 9) for cell in row) for row in rows)


def check(expected: Grid, text: str) -> None:
    """Raise `Violation` unless the text is the expected grid."""
    grid = read_grid(text, _COLOURS)
    require_shape(grid, len(expected), len(expected[0]))
    for r, (row, wanted) in enumerate(zip(grid, expected, strict=True), start=1):
        for c, (cell, colour) in enumerate(zip(row, wanted, strict=True), start=1):
            if cell != str(colour):
                raise Violation(f"row {r}, column {c} is {cell}, not {colour}")


def apply(step: str, grid: Grid) -> Grid | None:
    """One transformation; None where it is not defined or its result exceeds ARC's 30 cells a side."""
    result = TRANSFORMATIONS[step](grid)
    return None if result is None or max(len(result), len(result[0])) > MAX_SIDE else result


def recolour(grid: Grid, colours: Mapping[int, int]) -> Grid:
    """Replace colours; those that are not named stay."""
    return tuple(tuple(colours.get(cell, cell) for cell in row) for row in grid) if colours else grid


def solve(answer: Any, limit: int) -> list[str]:
    """Up to `limit` outputs that rules of up to two steps predict, those of shorter rules first."""
    pairs = field_of(answer, "train")
    examples = tuple((read_colours(pair["input"], "input"), read_colours(pair["output"], "output")) for pair in pairs)
    task = Task(examples, read_colours(field_of(answer, "input"), "input"))
    outputs = {_written(made): None for _, made in explanations(task, 2) if made is not None}
    return list(outputs)[:limit]


def explanations(task: Task, most_steps: int) -> Iterator[tuple[tuple[str, ...], Grid | None]]:
    """All chains of up to `most_steps` transformations that fit the examples, shorter ones first, each with the test output
    that it predicts: None where the chain or its change of colours says nothing about the test input.

    Chains that made the same of all inputs so far are followed once.
    """
    inputs = (*(given for given, _ in task.examples), task.test)
    outputs = [made for _, made in task.examples]
    layer: dict[tuple[Grid | None, ...], tuple[str, ...]] = {inputs: ()}
    seen = set(layer)
    yield from _fitting(layer, outputs)
    for length in range(1, most_steps + 1):
        following: dict[tuple[Grid | None, ...], tuple[str, ...]] = {}
        for grids, steps in layer.items():
            for step in TRANSFORMATIONS:
                if grids[0] is None or (first := apply(step, grids[0])) is None:
                    continue
                # The last layer is the largest by far, and nearly all of it fails on the first example.
                if length == most_steps and colour_change([(first, outputs[0])]) is None:
                    continue
                reached = (first, *(None if grid is None else apply(step, grid) for grid in grids[1:]))
                if reached not in seen and None not in reached[:-1]:
                    seen.add(reached)
                    following[reached] = (*steps, step)
        yield from _fitting(following, outputs)
        layer = following


def _fitting(
    layer: Mapping[tuple[Grid | None, ...], tuple[str, ...]], outputs: Sequence[Grid]
) -> Iterator[tuple[tuple[str, ...], Grid | None]]:
    for grids, steps in layer.items():
        made = [grid for grid in grids[:-1] if grid is not None]
        colours = colour_change(list(zip(made, outputs, strict=True)))
        if colours is None:
            continue
        test = grids[-1]
        changes = any(old != new for old, new in colours.items())
        unknown = test is not None and changes and any(cell not in colours for row in test for cell in row)
        yield steps, None if test is None or unknown else recolour(test, colours)


def colour_change(pairs: Sequence[tuple[Grid, Grid]]) -> dict[int, int] | None:
    """The map of colours that turns each first grid into the second; None where there is none. 0 stays 0."""
    colours = {0: 0}
    for before, after in pairs:
        if len(before) != len(after) or len(before[0]) != len(after[0]):
            return None
        for old_row, new_row in zip(before, after, strict=True):
            for old, new in zip(old_row, new_row, strict=True):
                if colours.setdefault(old, new) != new:
                    return None
    return colours


def _draw_rule(rng: random.Random, level: Level) -> Rule:
    names = list(TRANSFORMATIONS)
    colours: dict[int, int] = {}
    if level.replaced:
        old = rng.sample(range(1, 10), level.replaced)
        colours = dict(zip(old, rng.sample([colour for colour in range(1, 10) if colour not in old], len(old)), strict=True))
    return Rule(tuple(rng.choice(names) for _ in range(level.steps)), colours)


def _draw_task(rng: random.Random, rule: Rule, level: Level) -> tuple[Task, Grid] | None:
    """Inputs that the rule changes, their outputs, and the test output; None when chance gave none."""
    others = [colour for colour in range(1, 10) if colour not in rule.colours and colour not in rule.colours.values()]
    palette = [*rule.colours, *rng.sample(others, 3 - len(rule.colours))]
    pairs: dict[Grid, Grid] = {}
    for _ in range(4 * level.examples):
        given = draw_input(rng, rule.steps[0], palette, level.most)
        made = rule(given)
        if made is None or made == given or not any(map(any, made)) or max(len(made), len(made[0])) > _LARGEST_DRAWN:
            continue
        pairs[given] = made
        if len(pairs) == level.examples + 1:
            break
    if len(pairs) <= level.examples or len(set(pairs.values())) < len(pairs):
        return None
    (*examples, (test, expected)) = pairs.items()
    shown = {cell for given, _ in examples for row in given for cell in row}
    if any(colour not in shown for colour in rule.colours):
        return None
    return Task(tuple(examples), test), expected


def _is_settled(task: Task, expected: Grid, steps: int) -> bool:
    """Whether no chain shorter than the rule's explains the examples, and all of its length agree on the test output."""
    fitting = list(explanations(task, steps))
    return bool(fitting) and all(len(chain) == steps and made == expected for chain, made in fitting)


def _written(grid: Grid) -> str:
    return spaced(["".join(map(str, row)) for row in grid])


def _as_lists(grid: Grid) -> list[list[int]]:
    return [list(row) for row in grid]


GAME = Game(NAME, generate, fenced_score(read_output, check), solve, fenced, read_output)
