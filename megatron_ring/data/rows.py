"""Rows of data files as plain JSON values: JSON lines, one JSON list, parquet; the first two also packed by gzip or zstd.

A row is an object. NaN, as pandas writes what is missing, is null. `parquet` says what becomes of other types.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from megatron_ring.data.messages import RecordError, kind_of
from megatron_ring.data.parquet import JSON_COLUMNS, parquet_rows, pyarrow
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

LINES = (".jsonl", ".ndjson")
TEXTS = (*LINES, ".json")
PACKED = (".gz", ".zst")
SUFFIXES = (*TEXTS, ".parquet", *(text + packed for packed in PACKED for text in TEXTS))
# How files begin that are not what their name says, and what to do about it.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"\xff\xfe", "UTF-16: save the file as UTF-8"),
    (b"\xfe\xff", "UTF-16: save the file as UTF-8"),
    (b"{\0", "UTF-16: save the file as UTF-8"),
    (b"\0{", "UTF-16: save the file as UTF-8"),
    (b"\x1f\x8b", "packed by gzip: let its name end in .gz"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: let its name end in .zst"),
    (b"BZh", "packed by bzip2: unpack it"),
    (b"\xfd7zXZ", "packed by xz: unpack it"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"PAR1", "parquet: let its name end in .parquet"),
    (b"<", "a web page, not data: download the file itself"),
)


def suffix_of(path: Path) -> str:
    """The kind of a data file by its name, one of `SUFFIXES`. Raises `UserError` for another."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: unknown kind of file: name it {', '.join(SUFFIXES)}")
    return suffix


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (FILE:LINE, row); a row of parquet and an item of a JSON list count as a line. Blank lines are skipped.

    Raises:
        UserError: no such file, an unknown kind, or a row that is not an object; names the line.
    """
    return parsed_rows(path, raw_rows(path))


def raw_rows(path: Path) -> Iterator[Any]:
    """The rows of a file before they are parsed: bytes of a line, or what a parquet file or a JSON list holds; blank lines
    among them. Raises `UserError` for no such file, an unknown kind, and where it cannot be read on."""
    suffix = check_file(path)
    return parquet_rows(path) if suffix == ".parquet" else _json_rows(path, suffix)


def parsed_rows(path: Path, rows: Iterable[Any], before: int = 0) -> Iterator[tuple[str, dict[str, Any]]]:
    """`read_rows` of some `raw_rows`, which so many rows of the file come before."""
    for number, row in enumerate(rows, start=before + 1):
        if isinstance(row, bytes) and not row.strip():
            continue
        place = f"{path}:{number}"
        try:
            value = parse_line(row) if isinstance(row, bytes) else row
            if not isinstance(value, dict):
                raise RecordError(f"expected an object, found {kind_of(value)}: put one {{...}} on each line")
        except RecordError as error:
            raise UserError(f"{place}: {error}") from None
        yield place, value


def check_file(path: Path) -> str:
    """The kind of a data file, after a look at it (`suffix_of`, `check_beginning`). Raises `UserError`."""
    suffix = suffix_of(path)
    if path.is_dir():
        raise UserError(f"{path}: a folder: give a file")
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path")
    check_beginning(path, suffix)
    return suffix


def check_beginning(path: Path, suffix: str) -> None:
    """Raise `UserError` for a file of which the first bytes show that it is not what its name says."""
    own = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}.get(f".{suffix.rpartition('.')[2]}")
    try:
        with path.open("rb") as stream:
            beginning = stream.read(64).lstrip(b" \r\n\t")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}: check the file") from None
    for sign, what in _OTHERS:
        if sign != own and beginning.startswith(sign):
            raise UserError(f"{path}: is {what}")


def open_text_file(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where its name ends in .gz or .zst. Raises `UserError` where zstd's unpacker is missing."""
    kind = path.suffix.lower()
    if kind == ".zst":
        arrow, _ = pyarrow("files packed by zstd")
        return cast(IO[bytes], io.BufferedReader(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd"), 1 << 20))
    return cast(IO[bytes], gzip.open(path, "rb")) if kind == ".gz" else path.open("rb")


def _json_rows(path: Path, suffix: str) -> Iterator[Any]:
    """Lines, or the items of the one list that a .json file holds."""
    try:
        with open_text_file(path) as stream:
            if not suffix.startswith(LINES) and _is_list(cast(io.BufferedReader, stream).peek(64)[:64]):
                try:
                    yield from parse_line(stream.read())
                except RecordError as error:
                    raise UserError(f"{path}: {error}") from None
                return
            yield from stream
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}: check the file") from None


def _is_list(beginning: bytes) -> bool:
    return beginning.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")


def parse_line(line: bytes, surrogates: bool = False) -> Any:
    """JSON as plain values. Raises `RecordError`, which says where in the line; halves of surrogate pairs, which no file of
    text can hold, are refused unless they are allowed."""
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8") from None
    try:
        # Without the end of the line: an error in it would be one at column 1 of the next.
        row = json.loads(text.rstrip("\r\n"), parse_constant=_constant, parse_float=_float)
    except json.JSONDecodeError as error:
        raise RecordError(f"not JSON at column {error.colno} ({error.msg}): put one JSON object on each line") from None
    except ValueError:
        raise RecordError("a number has too many digits: write it as text") from None
    except RecursionError:
        raise RecordError("nested too deeply: flatten the object") from None
    if (
        not surrogates
        and "\\ud" in text.lower()
        and any("\ud800" <= letter <= "\udfff" for letter in json.dumps(row, ensure_ascii=False))
    ):
        raise RecordError("holds half of a surrogate pair (\\ud800 to \\udfff): remove the broken character")
    return row


def _constant(name: str) -> str | None:
    """NaN is how pandas writes what is missing; an infinity has no JSON but its name."""
    return None if name == "NaN" else name


def _float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text  # 1e999 keeps its digits


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of JSON, as JSON lines or parquet by the suffix; the file appears whole or not at all.

    In parquet a column of one kind (text, whole numbers, numbers, true and false) is of that type. Any other is JSON text,
    and is named in the file's metadata, so that it is read back as it was.
    """
    suffix = suffix_of(path)
    if suffix not in (".jsonl", ".ndjson", ".parquet"):
        raise UserError(f"{path}: rows are written as .jsonl or .parquet: choose one")
    if suffix != ".parquet":
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        return
    arrow, parquet = pyarrow()
    names = list(dict.fromkeys(key for row in rows for key in row))
    kinds: dict[Callable[[], Any], tuple[type, ...]] = {
        arrow.string: (str,), arrow.bool_: (bool,), arrow.int64: (int,), arrow.float64: (float, int),
    }  # fmt: skip
    columns, encoded = {}, []
    for name in names:
        values = [row.get(name) for row in rows]
        types = {type(row[name]) for row in rows if name in row}  # null in a row that has the key is kept apart
        kind = next((make for make, allowed in kinds.items() if types <= set(allowed)), None)
        if kind is arrow.int64 and not all(value is None or -(2**63) <= value < 2**63 for value in values):
            kind = None
        if kind is arrow.float64 and int in types:
            kind = None  # 1 and 1.0 are told apart
        if kind is None:
            encoded.append(name)
            values = [json.dumps(row[name], ensure_ascii=False) if name in row else None for row in rows]
        columns[name] = arrow.array(values, type=(kind or arrow.string)())
    table = arrow.table(columns).replace_schema_metadata({JSON_COLUMNS: json.dumps(encoded).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())
