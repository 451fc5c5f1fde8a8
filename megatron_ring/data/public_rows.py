"""Rows of benchmarks' public files: what `rows` reads, and CSV, TSV, one JSON object (BIG-Bench Hard, ARC-AGI), and folders
of such files."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ring.data.messages import RecordError
from megatron_ring.data.rows import SUFFIXES, open_text_file, parse_line, read_rows
from megatron_ring.errors import UserError

TABLES = {".csv": ",", ".tsv": "\t", ".csv.gz": ",", ".tsv.gz": "\t"}
MAX_FIELD = 1 << 27  # characters of one field of a table


def public_files(path: Path) -> list[Path]:
    """The data files that a path stands for: itself, or those below a folder, by name. Raises `UserError` where there are
    none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder: check the path")
    if not path.is_dir():
        return [path]
    known = (*SUFFIXES, *TABLES)
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(known))
    if not found:
        raise UserError(f"{path}: the folder holds no file named {', '.join(known)}: give the downloaded files")
    return found


def sha256_of(paths: list[Path]) -> str:
    """Of a file's bytes; of several, of their names and hashes in order."""
    digests = []
    for path in paths:
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(paths) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{d}  {p.name}\n" for d, p in zip(digests, paths, strict=True)).encode()).hexdigest()


def read_public_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, row) of one file. Raises `UserError`, which names the line of anything malformed."""
    name = path.name.lower()
    delimiter = next((sign for suffix, sign in TABLES.items() if name.endswith(suffix)), None)
    if delimiter is not None:
        yield from _table(path, delimiter)
        return
    whole = _whole_object(path) if name.endswith((".json", ".json.gz", ".json.zst")) else None
    if whole is None:
        yield from read_rows(path)
    else:
        yield from _rows_of_object(path, whole)


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open_text_file(path) as stream:
            text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start + 1}): save the file as UTF-8") from None
    except (OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    before = csv.field_size_limit(MAX_FIELD)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place}: more or fewer fields than the {len(reader.fieldnames or ())} of the first line")
            yield place, {str(key): value for key, value in row.items() if value != ""}
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a row of CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _whole_object(path: Path) -> dict[str, Any] | None:
    """The one object that a .json file holds, over several lines or one; None for a list, or lines of objects."""
    try:
        with open_text_file(path) as stream:
            found = parse_line(stream.read())
    except (OSError, EOFError, RecordError):
        return None  # lines, or broken: `read_rows` says where
    return found if isinstance(found, dict) else None


def _rows_of_object(path: Path, whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """`examples` as rows of the task that the file is named after; an object of objects as rows by id; else one row."""
    stem = path.name.split(".")[0]
    if isinstance(whole.get("examples"), list):
        for number, row in enumerate(whole["examples"], start=1):
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: an item of 'examples' is no object")
            yield f"{path}:{number}", {"task": stem, "id": f"{stem}-{number}", **row}
    elif len(whole) > 0 and all(isinstance(row, dict) for row in whole.values()):
        for number, (key, row) in enumerate(whole.items(), start=1):
            yield f"{path}:{number}", {"id": key, **row}
    else:
        yield f"{path}:1", {"id": stem, **whole}
