"""ARC-AGI: a task is solved when the grids of all its test inputs are right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Grade, Loaded, PlacedRow, Problem, Row
from megatron_ring.benchmarks.rows import RowError, each, first, id_of, need, parsed

MAX_SIDE = 30
MAX_TEXT = 1 << 18  # characters of a response, from its end
_GRID = re.compile(r"\[\s*+(?:\[\s*+\d(?:\s*+,\s*+\d)*+\s*+\]\s*+,?+\s*+)++\]")


def read_arc_agi(rows: Sequence[PlacedRow]) -> Loaded:
    """Task files; or a file of tasks without their tests' outputs, and one of `{task: [output, …]}`, as Kaggle has them."""
    solutions = {name: grids for _, row in rows if _holds_solutions(row) for name, grids in row.items() if name != "id"}
    return each(arc_agi)([(place, _solved(row, solutions)) for place, row in rows if not _holds_solutions(row)])


def _holds_solutions(row: Row) -> bool:
    """Whether it is no task, but lists of grids by the tasks' names."""
    known = any(first(row, *names) is not None for names in (("train", "fewshots"), ("test", "question")))
    return not known and len(row) > 1 and all(isinstance(grids, list) for name, grids in row.items() if name != "id")


def _solved(row: Row, solutions: Mapping[str, Any]) -> Row:
    """The task with the outputs of its tests, where others have them."""
    tests, outputs = row.get("test"), solutions.get(str(row.get("id", "")).lower())
    if not isinstance(tests, list) or not isinstance(outputs, list) or len(tests) != len(outputs):
        return row
    pairs = zip(tests, outputs, strict=True)
    return {**row, "test": [{"output": grid, **pair} if isinstance(pair, dict) else pair for pair, grid in pairs]}


def arc_agi(row: Row) -> Problem:
    """A task file: `train` and `test`, lists of {input, output}; or the form with `fewshots` and `question`."""
    train = parsed(need(row, "train", "fewshots"), "train")
    tests = parsed(need(row, "test", "question"), "test")
    if not isinstance(train, list) or not isinstance(tests, list) or not tests:
        raise RowError("'train' and 'test' are not lists of {input, output}")
    if not all(isinstance(pair, dict) and pair.get("output") is not None for pair in tests):
        raise RowError("a test has no output: give the folder that holds the file of solutions too")
    examples = [(_grid(pair, "input"), _grid(pair, "output")) for pair in train]
    questions, answers = [_grid(pair, "input") for pair in tests], [_grid(pair, "output") for pair in tests]
    shown = [
        f"Example {number}\nInput:\n{_written(given)}\nOutput:\n{_written(made)}"
        for number, (given, made) in enumerate(examples, start=1)
    ]
    asked = [f"Test input {number}:\n{_written(grid)}" for number, grid in enumerate(questions, start=1)]
    count = "the output grid" if len(tests) == 1 else f"the {len(tests)} output grids, one after another in order,"
    prompt = (
        "Each example shows an input grid and the output grid that one rule makes of it. Find the rule and apply it to "
        "every test input.\n\n" + "\n\n".join([*shown, *asked]) + f"\n\nEnd with {count} as JSON: a list of rows, each a "
        "list of whole numbers from 0 to 9."
    )
    return Problem(id_of(row, "id", "task_id"), prompt, answers)


def score(problem: Problem, response: str) -> Grade:
    """The last grids of the response, as many as there are tests. 1 where all are right."""
    found = [_read(match) for match in _GRID.findall(response[-MAX_TEXT:])]
    grids = found[-len(problem.answer) :]
    if len(grids) < len(problem.answer):
        return Grade(0.0, None, f"{len(grids)} grids found, {len(problem.answer)} wanted")
    right = sum(given == wanted for given, wanted in zip(grids, problem.answer, strict=True))
    key = json.dumps(grids, separators=(",", ":"))
    return Grade(float(right == len(grids)), key, f"{right} of {len(grids)} grids are right")


def _read(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:  # a comma too many
        return None


def _grid(pair: Any, name: str) -> list[list[int]]:
    grid = pair.get(name) if isinstance(pair, dict) else None
    rows = grid if isinstance(grid, list) else []
    whole = all(
        isinstance(line, list) and len(line) == len(rows[0]) and all(type(cell) is int and 0 <= cell <= 9 for cell in line)
        for line in rows
        if isinstance(rows[0], list)
    )
    if not (1 <= len(rows) <= MAX_SIDE and isinstance(rows[0], list) and 1 <= len(rows[0]) <= MAX_SIDE and whole):
        raise RowError(f"{name!r} is no grid of up to {MAX_SIDE} rows of numbers from 0 to 9")
    return [list(line) for line in rows]


def _written(grid: list[list[int]]) -> str:
    return "[" + ",\n ".join(json.dumps(line, separators=(",", ":")) for line in grid) + "]"
