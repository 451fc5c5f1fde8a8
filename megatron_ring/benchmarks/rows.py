"""What loaders share: columns under several names, answers as text, literals that are read and never run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Loaded, PlacedRow, Problem, Row
from megatron_ring.errors import UserError
from megatron_ring.rewards.python_source import read_literal

MAX_LITERAL = 1 << 20  # characters
NAMES_TOLD = 5  # of rows that are left out


class RowError(UserError):
    """A row that is not of the benchmark's public form. The message names the column."""


class LeftOut(Exception):
    """A row that is no problem of the benchmark as it is measured. The message says why, in the plural: `with images`.
    `name`: of the row, where it is to be said which ones they are."""

    def __init__(self, why: str, name: str = "") -> None:
        super().__init__(why)
        self.name = name


def small(row: Mapping[str, Any]) -> Row:
    """The row with its names in small letters; of two that become the same the first stays."""
    lowered: dict[str, Any] = {}
    for name, value in row.items():
        lowered.setdefault(str(name).strip().lower(), value)
    return lowered


def first(row: Row, *names: str) -> Any:
    """The value of the first of these columns that is there; dots go into objects. None where none is."""
    for name in names:
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            return value
    return None


def need(row: Row, *names: str) -> Any:
    """`first`, which must be there."""
    value = first(row, *names)
    if value is None:
        others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
        raise RowError(f"the column '{names[0]}'{others} is missing; the columns are {', '.join(map(str, row))}"[:300])
    return value


def text(row: Row, *names: str) -> str:
    """A column as text: numbers as they are written, messages by what the user says last."""
    return as_text(need(row, *names), names[0])


def as_text(value: Any, name: str) -> str:
    """A value as text. Raises `RowError` for one that has none."""
    if isinstance(value, list) and len(value) == 1 and not isinstance(value[0], Mapping):
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        said = [item.get("content") for item in value if item.get("role", "user") == "user"]
        value = said[-1] if said else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"the column '{name}' holds {type(value).__name__}, not text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = str(value).strip()
    if not found:
        raise RowError(f"the column '{name}' is blank")
    return found


def parsed(value: Any, name: str) -> Any:
    """A column that is a value, its JSON, or its Python literal. A literal is read as data; nothing is called or run."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return literal(value, name)


def literal(value: str, name: str) -> Any:
    """A Python literal. Raises `RowError` for anything that is more than a literal."""
    if len(value) > MAX_LITERAL:
        raise RowError(f"the column '{name}' has more than {MAX_LITERAL:,} characters")
    try:
        return read_literal(value.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise RowError(f"the column '{name}' is neither JSON nor a Python literal: {value[:60]!r}") from None


def each(make: Callable[[Row], Problem], *, distinct: bool = False) -> Callable[[Sequence[PlacedRow]], Loaded]:
    """A reader that makes a problem of each row.

    Args:
        make: the problem; may leave its id empty for the row's number. Raises `RowError`, `LeftOut`.
        distinct: leave out rows that ask once more what an earlier one asks, and refuse one with another answer.
    """

    def read(rows: Sequence[PlacedRow]) -> Loaded:
        problems: list[Problem] = []
        left_out: dict[str, list[str]] = {}
        asked: dict[str, Problem] = {}
        for number, (place, row) in enumerate(rows, start=1):
            try:
                problem = make(row)
            except RowError as error:
                raise RowError(f"{place}: {error}") from None
            except LeftOut as why:
                left_out.setdefault(str(why), []).append(why.name)
                continue
            problem = placed(problem, place, number)
            before = asked.setdefault(" ".join(problem.prompt.split()), problem) if distinct else problem
            if before is not problem:
                if before.answer != problem.answer:
                    said = f"the problem of {before.place} has another answer here: {before.answer!r}, {problem.answer!r}"
                    raise RowError(f"{place}: {said}"[:400])
                left_out.setdefault("repeated", []).append("")
                continue
            problems.append(problem)
        return Loaded(unique(problems), [_left_out(why, names) for why, names in left_out.items()])

    return read


def _left_out(why: str, names: Sequence[str]) -> str:
    """How many rows, and the first of their names where they have some."""
    told = [name for name in names if name][:NAMES_TOLD]
    more = ", …" if len(names) > len(told) else ""
    return f"{len(names):,} rows left out: {why}" + (f" ({', '.join(told)}{more})" if told else "")


def placed(problem: Problem, place: str, number: int) -> Problem:
    """The problem with its place, and the row's number where it has no id."""
    return Problem(
        problem.id or str(number), problem.prompt, problem.answer, problem.domain, problem.category, problem.variants,
        problem.metadata, place,
    )  # fmt: skip


def unique(problems: Iterable[Problem]) -> list[Problem]:
    """The problems with ids that differ: of equal ones the later get a number behind it."""
    seen: dict[str, int] = {}
    found = []
    for problem in problems:
        count = seen[problem.id] = seen.get(problem.id, 0) + 1
        found.append(problem if count == 1 else _renamed(problem, f"{problem.id}#{count}"))
    return found


def _renamed(problem: Problem, new: str) -> Problem:
    return Problem(
        new, problem.prompt, problem.answer, problem.domain, problem.category, problem.variants, problem.metadata,
        problem.place,
    )  # fmt: skip


def id_of(row: Row, *names: str) -> str:
    """The id in one of these columns, as text; empty where there is none."""
    value = first(row, *names)
    return "" if value is None else as_text(value, names[0])
