"""Forms of public files: how one is recognised, and what their rows have in common.

A form is recognised from the first row of a file, whatever the capitals of its column names; all further rows must be of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.data.messages import RecordError, is_nothing, kind_of
from megatron_ring.rewards.code_formats import whole_number

Row = dict[str, Any]


class UnansweredError(RecordError):
    """A row whose publisher gives no answer to compare a response with, as for a proof: it is left out, and counted."""


@dataclass(frozen=True)
class Form:
    """One form of a public file.

    Attributes:
        name: what the user is told.
        columns: names that a row must have, in small letters.
        absent: names that must say nothing.
        convert: from a row, its names in small letters, to one of the contract; may lack `id` and `domain`.
        holds: what else its first row must show.
    """

    name: str
    columns: frozenset[str]
    convert: Callable[[Row], Row]
    absent: frozenset[str] = frozenset()
    holds: Callable[[Row], bool] = lambda row: True

    def fits(self, row: Row) -> bool:
        """Whether a row (names in small letters) is of this form."""
        given = {name for name, value in row.items() if value is not None}
        absent = {name for name in self.absent & given if not is_nothing(row[name])}
        return self.columns <= given and not absent and self.holds(row)


def small(row: Mapping[str, Any]) -> Row:
    """The row with its names in small letters; of two that become the same the first stays."""
    lowered: Row = {}
    for name, value in row.items():
        lowered.setdefault(str(name).strip().lower(), value)
    return lowered


def first_fitting(forms: tuple[Form, ...], row: Mapping[str, Any]) -> Form | None:
    """The first of these forms that a row is of."""
    lowered = small(row)
    return next((form for form in forms if form.fits(lowered)), None)


def columns(*names: str) -> frozenset[str]:
    """Names of columns."""
    return frozenset(names)


def answer_text(value: Any, name: str) -> str:
    """An answer as text: numbers as they are written, a list of one for its item. Raises `UnansweredError` for no text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RecordError(f"'{name}' is {kind_of(value)}: expected text or a number")
    if isinstance(value, str) and not value.strip():
        raise UnansweredError(f"'{name}' is empty")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parsed(value: Any, name: str) -> Any:
    """A column that may be JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_int=whole_number)
    except (ValueError, RecursionError):
        raise RecordError(f"'{name}' is not JSON") from None


def kept(row: Row, *names: str) -> Row:
    """Columns for the metadata."""
    return {name: row[name] for name in names if row.get(name) is not None}


def id_of(row: Row, *names: str) -> Row:
    """The id of a row, where it has one of these columns."""
    value = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    return {} if value is None else {"id": value if isinstance(value, str) else answer_text(value, "id")}
