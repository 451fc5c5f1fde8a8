"""Reading a preference file whole: which rows are pairs, which prefer nothing, which are malformed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_ring.data.fields import Fields, columns_of, likely_column, seems_to_hold
from megatron_ring.data.forms import Form, small
from megatron_ring.data.messages import RecordError, unread_keys
from megatron_ring.data.preference_forms import preference_form
from megatron_ring.data.preferences import NoPreferenceError, Pairs, PreferenceRecord, preferences_from_json
from megatron_ring.data.records import refuse_unreadable
from megatron_ring.data.rows import read_rows
from megatron_ring.errors import UserError

PREFERENCE_FIELDS = ("prompt", "chosen", "rejected", "completions", "margin", "subset", "id", "system")
CONVERSATIONS = ("prompt", "context", "chosen", "rejected")


@dataclass
class _Left:
    """Rows that were left out, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, said: str) -> None:
        self.count += 1
        self.first = self.first or said


@dataclass(frozen=True)
class PreferenceFile:
    """The pairs of a file, and what is to be said of how they were read (empty: as the contract has them, all)."""

    records: list[PreferenceRecord]
    note: str = ""


def read_preference_file(
    path: str | Path,
    fields: Fields | None = None,
    pairs: Pairs = "best-worst",
    bad_rows: Literal["error", "drop"] = "error",
    margins: bool = True,
    flag: str = "--data.fields",
) -> PreferenceFile:
    """Read a preference file of the contract, of a public form, or with the columns that `fields` names. Rows that prefer
    nothing are left out and counted in the note, and with `bad_rows` "drop" malformed ones. Without `margins` a column of
    that name is not read, whatever it holds.

    Raises:
        UserError: names file and line of anything malformed, or says that no pair is left.
    """
    path, fields = Path(path), fields or Fields()
    form: Form | None = None
    records: list[PreferenceRecord] = []
    equal, bad, unread, rows = _Left(), _Left(), set(), 0
    for rows, (place, row) in enumerate(read_rows(path), start=1):
        if rows == 1 and not fields.columns:
            form = preference_form(row)
        try:
            converted = _converted(row, form, fields) | ({} if margins else {"margin": None})
            found = preferences_from_json(converted, pairs)
        except NoPreferenceError as error:
            equal.add(f"{place}: {error}")
            continue
        except RecordError as error:
            said = f"{place}: {error}{_hint(str(error), row, form, flag)}"
            if bad_rows == "error":
                raise UserError(said) from None
            bad.add(said)
            continue
        unread |= unread_keys(converted.get(name) for name in CONVERSATIONS)
        records += [dataclasses.replace(record, place=place) for record in found]
    if not records:
        first = bad.first or equal.first
        raise UserError(
            f"{first}; no pair of the file is left" if first else f"{path}: the file holds no rows: give at least one"
        )
    return PreferenceFile(records, _note(path, form, len(records), rows, equal, bad, unread))


def _converted(row: dict[str, Any], form: Form | None, fields: Fields) -> dict[str, Any]:
    refuse_unreadable(row, ("tools", "functions"))
    if form is not None:
        lowered = small(row)
        lacks = sorted(name for name in form.columns if lowered.get(name) is None)
        if lacks:
            raise RecordError(f"'{lacks[0]}' is missing, in a file of the form {form.name}")
        row = form.convert(lowered)
    return fields.applied(row)


def _hint(error: str, row: Mapping[str, Any], form: Form | None, flag: str) -> str:
    if form is not None or not error.startswith("'chosen' is missing"):
        return ""
    if likely_column(row, "chosen") and likely_column(row, "rejected"):
        return "".join(seems_to_hold(row, name, flag) for name in ("chosen", "rejected"))
    return f"; {columns_of(row)}"


def _note(path: Path, form: Form | None, count: int, rows: int, equal: _Left, bad: _Left, unread: set[str]) -> str:
    parts = [f"read as {form.name}"] if form is not None else []
    if form is not None or count != rows:
        parts.append(f"{count:,} pairs of {rows:,} rows")
    if equal.count:
        parts.append(f"{equal.count:,} rows without a preference left out (the first: {equal.first})")
    if bad.count:
        parts.append(f"{bad.count:,} malformed rows left out (the first: {bad.first})")
    if unread:
        parts.append(f"keys of messages that are not read: {', '.join(sorted(unread)[:12])}")
    return f"{path}: {'; '.join(parts)}" if parts else ""
