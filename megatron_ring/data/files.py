"""Prompt and SFT files: JSON lines or parquet, checked row by row, written whole or not at all.

| file   | keys of a row                                                                        |
|--------|--------------------------------------------------------------------------------------|
| prompt | `id`, `domain`, `prompt` (text or messages), `answer`, optional `metadata`           |
| SFT    | `messages`, or `prompt` and `response`; optional `domain`, `source`                  |

Other keys are ignored, blank lines are skipped. Parquet needs pyarrow. Columns whose values are not all text are
written to parquet as JSON text, and named in the file's metadata, so that any answer survives the round trip; nested
columns of parquet files from elsewhere are read as they are.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from megatron_ring.data.records import (
    Message,
    PromptRecord,
    RecordError,
    SFTRecord,
    prompt_from_json,
    prompt_to_json,
    sft_from_json,
    sft_to_json,
)
from megatron_ring.errors import UserError

__all__ = [
    "Message",
    "PromptRecord",
    "SFTRecord",
    "read_prompts",
    "read_questions",
    "read_sft",
    "write_prompts",
    "write_sft",
]

_Record = TypeVar("_Record")
_JSON_COLUMNS = b"megatron_ring.json_columns"


def read_prompts(path: str | Path) -> list[PromptRecord]:
    """Read a prompt file. Raises `UserError`, naming file and line, for anything malformed, and for a repeated id."""
    records: list[PromptRecord] = []
    lines: dict[str, str] = {}
    for place, record in _read(Path(path), prompt_from_json):
        if record.id in lines:
            raise UserError(f"{place}: the id {record.id!r} is already used at {lines[record.id]}: make ids unique")
        lines[record.id] = place
        records.append(dataclasses.replace(record, place=place))
    return records


def read_questions(path: str | Path) -> list[PromptRecord]:
    """Read prompts that nobody scores: rows of a prompt file that need no more than `prompt`; an `id` that is missing is the
    row's number. Raises `UserError`, naming file and line, for anything malformed."""
    number = count(1)

    def parse(row: object) -> PromptRecord:
        given = {"id": str(next(number)), "domain": "none", "answer": ""}
        return prompt_from_json({**given, **row} if isinstance(row, dict) else row)

    return [record for _, record in _read(Path(path), parse)]


def read_sft(path: str | Path) -> list[SFTRecord]:
    """Read an SFT file. Raises `UserError`, naming file and line, for anything malformed."""
    return [record for _, record in _read(Path(path), sft_from_json)]


def write_prompts(path: str | Path, records: Iterable[PromptRecord]) -> None:
    """Write a prompt file, JSON lines or parquet by its suffix; the file appears whole or not at all."""
    write_rows(Path(path), [prompt_to_json(record) for record in records])


def write_sft(path: str | Path, records: Iterable[SFTRecord]) -> None:
    """Write an SFT file, JSON lines or parquet by its suffix; the file appears whole or not at all."""
    write_rows(Path(path), [sft_to_json(record) for record in records])


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write a temporary file beside `path`, in pieces as they come, then rename it into place. Raises `UserError` if it
    cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}: choose a folder that can be written, with space left"
        ) from None


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file, on the disk when it returns. Raises `UserError` if it cannot."""
    try:
        with path.open("ab") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def check_target(path: Path, flag: str) -> None:
    """Raise `UserError` where `write_atomically` could not write `path`, before there is something to write."""
    trial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror}") from None


def _is_parquet(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{path}: unknown kind of file: name it .jsonl or .parquet")
    return path.suffix == ".parquet"


def _read(path: Path, parse: Callable[[object], _Record]) -> Iterator[tuple[str, _Record]]:
    """Yield (file:line, record); a parquet row counts as a line. Raises `UserError`, also when there is no record."""
    parquet = _is_parquet(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path")
    empty = True
    for number, row in enumerate(parquet_rows(path) if parquet else _json_rows(path), start=1):
        if isinstance(row, bytes) and not row.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = parse(_parse_line(row) if isinstance(row, bytes) else row)
        except RecordError as error:
            raise UserError(f"{place}: {error}") from None
        empty = False
        yield place, record
    if empty:
        raise UserError(f"{path}: the file holds no records: give at least one")


def _json_rows(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            yield from stream
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: check its permissions") from None


def _parse_line(line: bytes) -> object:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    try:
        # Without the end of the line: an error in it would be one at column 1 of the next.
        row = json.loads(text.rstrip("\r\n"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON at column {error.colno} ({error.msg}): put one JSON object on each line") from None
    except RecordError:
        raise
    except ValueError:
        raise RecordError("a number has too many digits: write it as text") from None
    except RecursionError:
        raise RecordError("nested too deeply: flatten the object") from None
    if "\\ud" in text.lower() and any("\ud800" <= letter <= "\udfff" for letter in json.dumps(row, ensure_ascii=False)):
        raise RecordError("holds half of a surrogate pair (\\ud800 to \\udfff): remove the broken character")
    return row


def _refuse_constant(name: str) -> object:
    raise RecordError(f"{name} is not JSON: use a number or text")


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, one row group in memory at a time; nulls are left out. Raises `UserError`."""
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        encoded = json.loads((file.schema_arrow.metadata or {}).get(_JSON_COLUMNS, b"[]"))
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                whole = {key: value for key, value in row.items() if value is not None}
                yield {key: json.loads(value) if key in encoded else value for key, value in whole.items()}
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


def count_parquet_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer. Raises `UserError`."""
    arrow, parquet = _pyarrow()
    try:
        return int(parquet.ParquetFile(path).metadata.num_rows)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of JSON, as JSON lines or parquet by the suffix; the file appears whole or not at all."""
    if not _is_parquet(path):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(path, text.encode())
        return
    arrow, parquet = _pyarrow()
    names = list(dict.fromkeys(key for row in rows for key in row))
    encoded = [name for name in names if not all(isinstance(row.get(name, ""), str) for row in rows)]
    columns = {
        name: [
            None if name not in row else json.dumps(row[name], ensure_ascii=False) if name in encoded else row[name]
            for row in rows
        ]
        for name in names
    }
    table = arrow.table({name: arrow.array(values, type=arrow.string()) for name, values in columns.items()})
    table = table.replace_schema_metadata({_JSON_COLUMNS: json.dumps(encoded).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError("parquet files need pyarrow: run `pip install pyarrow`, or use a .jsonl file") from None
