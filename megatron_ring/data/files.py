"""Prompt and SFT files, checked row by row, written whole or not at all.

| file   | keys of a row                                                                        |
|--------|--------------------------------------------------------------------------------------|
| prompt | `id`, `domain`, `prompt` (text or messages), `answer`, optional `metadata`           |
| SFT    | `messages`, or `prompt` and `response`; optional `domain`, `source`                  |

Other keys are ignored, blank lines are skipped. Files of public data sets are read as they are downloaded where their form
is known (`forms`), any other where its columns are named (`fields`). `rows` says which kinds of file there are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from megatron_ring.data.fields import Fields, seem_to_hold_a_conversation, seems_to_hold
from megatron_ring.data.forms import Form, UnansweredError, kept, small
from megatron_ring.data.messages import json_of, unread_columns, unread_keys
from megatron_ring.data.prompt_forms import prompt_form
from megatron_ring.data.records import (
    Message,
    PromptRecord,
    RecordError,
    SFTRecord,
    prompt_from_json,
    prompt_to_json,
    refuse_unreadable,
    sft_from_json,
    sft_to_json,
)
from megatron_ring.data.rows import read_rows, write_rows
from megatron_ring.data.sft_forms import SFT_FORMS, sft_form
from megatron_ring.errors import UserError

__all__ = [
    "Message",
    "PromptFile",
    "PromptRecord",
    "SFTFile",
    "SFTReader",
    "SFTRecord",
    "read_prompt_file",
    "read_prompts",
    "read_questions",
    "read_sft",
    "read_sft_file",
    "write_prompts",
    "write_sft",
]

_Record = TypeVar("_Record", PromptRecord, SFTRecord)


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, and what is to be said of how they were read (empty: as the contract has them)."""

    records: list[PromptRecord]
    note: str = ""


@dataclass(frozen=True)
class SFTFile:
    """The conversations of a file, and what is to be said of how they were read."""

    records: list[SFTRecord]
    note: str = ""


def read_prompt_file(path: str | Path, fields: Fields | None = None, flag: str = "--data.fields") -> PromptFile:
    """Read a prompt file of the contract, of a public form, or with the columns that `fields` names.

    A file that is not of the contract needs no ids: a row without one has its number, and so has one of a public form that
    asks something else under an id that is taken. A row that says once more what another says is left out, and one of a
    public form that has no answer. All are counted in the note.

    Raises:
        UserError: names file and line of anything malformed, of a repeated id, and the column that seems to hold what is
            missing, with the flag that names it.
    """
    path, fields = Path(path), fields or Fields()
    reader = _Reader(path, fields, prompt_form, _is_prompt, flag)
    records: list[PromptRecord] = []
    known: dict[str, PromptRecord] = {}
    seen: set[bytes] = set()
    for place, row, number in reader.rows():
        if reader.foreign:
            row = {**row, "id": f"{path.stem}-{number}" if row.get("id") is None else row["id"]}
            digest = _digest(row)
            if digest in seen:
                reader.repeated += 1
                continue
            seen.add(digest)
        record = dataclasses.replace(reader.checked(place, row, prompt_from_json), place=place)
        if reader.has_form and record.id in known and known[record.id].prompt != record.prompt:
            record, reader.renamed = dataclasses.replace(record, id=f"{path.stem}-{number}"), reader.renamed + 1
        if record.id in known:
            raise UserError(f"{place}: the id {record.id!r} is already used at {known[record.id].place}: make ids unique")
        known[record.id] = record
        records.append(record)
    reader.check_some(records)
    return PromptFile(records, reader.note(len(records)))


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """The records of `read_prompt_file`."""
    return read_prompt_file(path).records


def read_questions(path: str | Path) -> list[PromptRecord]:
    """Read prompts that nobody scores: rows of a prompt file that need no more than `prompt`; an `id` that is missing is the
    row's number. Raises `UserError`, naming file and line, for anything malformed."""
    path, number = Path(path), count(1)
    reader = _Reader(path, Fields(), prompt_form, lambda row: row.get("prompt") is not None, "")
    records = []
    for place, row, _ in reader.rows():
        own = {name: value for name, value in row.items() if value is not None}
        given = {"id": str(next(number)), "domain": "none", "answer": "", **own}
        records.append(dataclasses.replace(reader.checked(place, given, prompt_from_json), place=place))
    reader.check_some(records)
    return records


def read_sft_file(path: str | Path, fields: Fields | None = None, flag: str = "--data.fields") -> SFTFile:
    """Read an SFT file of the contract, of a public form, or with the columns that `fields` names. Raises `UserError`,
    naming file and line, for anything malformed."""
    reader = SFTReader(Path(path), fields or Fields(), flag)
    records = list(reader.records(read_rows(Path(path))))
    reader.check_some(records)
    return SFTFile(records, reader.note(len(records)))


def read_sft(path: str | Path) -> list[SFTRecord]:
    """The records of `read_sft_file`."""
    return read_sft_file(path).records


def write_prompts(path: str | Path, records: Iterable[PromptRecord]) -> None:
    """Write a prompt file, JSON lines or parquet by its suffix; the file appears whole or not at all."""
    write_rows(Path(path), [prompt_to_json(record) for record in records])


def write_sft(path: str | Path, records: Iterable[SFTRecord]) -> None:
    """Write an SFT file, JSON lines or parquet by its suffix; the file appears whole or not at all."""
    write_rows(Path(path), [sft_to_json(record) for record in records])


def _is_prompt(row: Mapping[str, Any]) -> bool:
    """Whether a row is of the contract as it is."""
    return all(row.get(name) is not None for name in ("id", "domain", "prompt", "answer"))


def _is_sft(row: Mapping[str, Any]) -> bool:
    return row.get("messages") is not None or (row.get("prompt") is not None and row.get("response") is not None)


def _digest(row: Mapping[str, Any]) -> bytes:
    """Of what a row asks and expects, whatever its id."""
    content = json.dumps([row.get(name) for name in ("domain", "prompt", "answer", "tools")], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=16).digest()


class _Reader:
    """Rows of one file as the contract names their columns. Its form is that of the first row."""

    def __init__(
        self, path: Path, fields: Fields, form_of: Callable[[Mapping[str, Any]], Form | None],
        is_contract: Callable[[Mapping[str, Any]], bool], flag: str,
    ) -> None:  # fmt: skip
        self.path, self.fields, self.flag = path, fields, flag
        self._form_of, self._is_contract = form_of, is_contract
        self._form: Form | None = None
        self._given: Mapping[str, Any] = {}
        self.foreign = bool(fields.columns or fields.domain)
        self.repeated = self.renamed = self._unanswered = 0
        self._first_unanswered = ""
        self.unread: set[str] = set()
        self.unread_columns: set[str] = set()
        self._begun = False

    @property
    def has_form(self) -> bool:
        """Whether the file is of a public form."""
        return self._form is not None

    def rows(self, given: Iterable[tuple[str, dict[str, Any]]] | None = None) -> Iterator[tuple[str, dict[str, Any], int]]:
        """(FILE:LINE, row of the contract, number of the row); of the whole file, or of what is given of it."""
        for number, (place, row) in enumerate(read_rows(self.path) if given is None else given, start=1):
            self.begin(row)
            self._given = row
            try:
                converted = self._converted(row)
            except UnansweredError as error:
                self._unanswered += 1
                self._first_unanswered = self._first_unanswered or f"{place}: {error}"
                continue
            except RecordError as error:
                raise UserError(f"{place}: {error}") from None
            self.unread |= unread_keys(converted.get(name) for name in ("messages", "prompt", "response"))
            if self._is_contract is _is_sft:
                self.unread_columns |= unread_columns(row, self.fields.columns.values())
            yield place, converted, number

    def begin(self, first: Mapping[str, Any]) -> None:
        """Take the form of the file's first row. What comes after changes it no more."""
        if not self._begun and not self.fields.columns and not self._is_contract(first):
            self._form = self._form_of(first)
            self.foreign = self.foreign or self._form is not None
        self._begun = True

    def _converted(self, row: dict[str, Any]) -> dict[str, Any]:
        refuse_unreadable(row)
        if self._form is not None:
            lowered = small(row)
            if not self._form.columns <= {name for name, value in lowered.items() if value is not None}:
                lacks = sorted(name for name in self._form.columns if lowered.get(name) is None)
                raise RecordError(f"'{lacks[0]}' is missing, in a file of the form {self._form.name}")
            row = {**self._form.convert(lowered), **kept(lowered, "tools")}
        row = self.fields.applied(row)
        return {**row, "messages": json_of(row["messages"], "[")} if isinstance(row.get("messages"), str) else row

    def checked(self, place: str, row: dict[str, Any], parse: Callable[[object], _Record]) -> _Record:
        """The record of a row; an error names the place, and where what is missing may be."""
        try:
            return parse(row)
        except RecordError as error:
            name = str(error).split("'")[1] if str(error).startswith("'") and "' is missing" in str(error) else ""
            hint = seems_to_hold(self._given, name, self.flag) if name and self._form is None else ""
            if str(error).startswith("neither 'messages'"):
                hint = seem_to_hold_a_conversation(self._given, self.flag)
            if name == "domain" and not hint:
                hint = f"; {self.flag.removesuffix('fields')}domain gives one to all rows"
            raise UserError(f"{place}: {error}{hint}") from None

    def check_some(self, records: Sequence[object]) -> None:
        """Raise `UserError` where no record was read."""
        if not records and self._first_unanswered:
            raise UserError(f"{self._first_unanswered}; no row of the file has an answer")
        if not records:
            raise UserError(f"{self.path}: the file holds no records: give at least one")

    def note(self, count: int) -> str:
        """What is to be said of how the file was read; empty where it is of the contract and read whole."""
        said = self.remark(count)
        return f"{self.path}: {said}" if said else ""

    def remark(self, count: int) -> str:
        """The note without the name of the file."""
        kinds = (("keys of messages", self.unread), ("columns", self.unread_columns))
        unread = "; ".join(f"{kind} that are not read: {', '.join(sorted(names)[:12])}" for kind, names in kinds if names)
        if not self.foreign:
            return unread
        if self._form is not None:
            form = f"read as {self._form.name}"
        else:
            form = "read with " + ", ".join(f"{name}={column}" for name, column in self.fields.columns.items())
            form = form if self.fields.columns else f"domain {self.fields.domain}"
        repeated = f", {self.repeated:,} repeated rows left out" if self.repeated else ""
        repeated += f", {self.renamed:,} ids that are taken replaced by the row's number" if self.renamed else ""
        if self._unanswered:
            repeated += f", {self._unanswered:,} rows without an answer left out (the first: {self._first_unanswered})"
        return f"{form}: {count:,} rows{repeated}" + (f"; {unread}" if unread else "")


class SFTReader(_Reader):
    """An SFT file row by row, in one process or in several, each of which has its own; see `read_sft_file`.

    Attributes: `unread` and `unread_columns`, names of keys and columns that say something and are not read.
    """

    def __init__(self, path: Path, fields: Fields, flag: str = "--data.fields") -> None:
        super().__init__(path, fields, sft_form, _is_sft, flag)

    def begin_as(self, form: str) -> None:
        """`begin` in another process than the one that saw the first row: by the name of its form, empty for none."""
        self._form = next((one for one in SFT_FORMS if one.name == form), None)
        self.foreign, self._begun = self.foreign or self._form is not None, True

    @property
    def form(self) -> str:
        return "" if self._form is None else self._form.name

    def records(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[SFTRecord]:
        """The conversations of some rows, the file's first, or after a `begin`. Raises `UserError`."""
        for place, row, _ in self.rows(rows):
            yield dataclasses.replace(self.checked(place, row, sft_from_json), place=place)
