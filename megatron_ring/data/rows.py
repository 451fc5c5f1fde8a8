"""Rows of data files as plain JSON values: JSON lines, one JSON list, parquet; the first two also compressed with gzip.

A row is an object. Values that JSON lacks become what a reader would write for them: dates and times their ISO text,
decimals a whole number or text, bytes their UTF-8 text or else base64. A number that is not a number (NaN, as pandas writes
what is missing) is null.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import gzip
import importlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast
from uuid import UUID

from megatron_ring.data.messages import RecordError, kind_of
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

LINES = (".jsonl", ".ndjson")
SUFFIXES = (*LINES, ".json", ".parquet", *(f"{suffix}.gz" for suffix in (*LINES, ".json")))
_JSON_COLUMNS = b"megatron_ring.json_columns"


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
    suffix = suffix_of(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file: check the path")
    for number, row in enumerate(parquet_rows(path) if suffix == ".parquet" else _json_rows(path, suffix), start=1):
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


def open_text_file(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where its name ends in .gz."""
    return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _json_rows(path: Path, suffix: str) -> Iterator[Any]:
    """Lines, or the items of the one list that a .json file holds."""
    try:
        with open_text_file(path) as stream:
            if suffix.startswith(".json") and not suffix.startswith(LINES) and _is_list(stream.read(64)):
                stream.seek(0)
                try:
                    yield from parse_line(stream.read())
                except RecordError as error:
                    raise UserError(f"{path}: {error}") from None
                return
            stream.seek(0)
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


def plain_value(value: Any) -> Any:
    """A value of a parquet file as JSON has it (see the module)."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, decimal.Decimal):
        return _decimal(value)
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    return str(value) if isinstance(value, UUID | datetime.timedelta) else repr(value)


def _decimal(value: decimal.Decimal) -> int | str | None:
    """72.00 is 72; 0.10 is the text of 0.1."""
    if value.is_nan():
        return None
    if value.is_infinite():
        return str(value)
    return int(value) if value == value.to_integral_value() else format(value.normalize(), "f")


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, one batch in memory at a time; nulls are left out. Raises `UserError`."""
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path)
        encoded = set(json.loads((file.schema_arrow.metadata or {}).get(_JSON_COLUMNS, b"[]")))
        for batch in file.iter_batches(batch_size=4096):
            for row in _values_of(batch, arrow):
                whole = {key: plain_value(value) for key, value in row.items()}
                yield {
                    key: json.loads(value) if key in encoded else value for key, value in whole.items() if value is not None
                }
    except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


def _values_of(batch: Any, arrow: Any) -> list[dict[str, Any]]:
    """The rows of a batch; times to the microsecond, as Python has them."""
    try:
        return cast(list[dict[str, Any]], batch.to_pylist())
    except ValueError:  # a time in nanoseconds
        columns = [column.cast(_in_microseconds(column.type, arrow), safe=False) for column in batch.columns]
        whole = arrow.RecordBatch.from_arrays(columns, names=batch.schema.names)
        return cast(list[dict[str, Any]], whole.to_pylist())


def _in_microseconds(kind: Any, arrow: Any) -> Any:
    """An arrow type with microseconds for nanoseconds, also in lists and objects."""
    types = arrow.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return arrow.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return arrow.duration("us")
    if types.is_time64(kind) and kind.unit == "ns":
        return arrow.time64("us")
    if types.is_list(kind) or types.is_large_list(kind):
        make = arrow.list_ if types.is_list(kind) else arrow.large_list
        return make(_in_microseconds(kind.value_type, arrow))
    if types.is_struct(kind):
        return arrow.struct([field.with_type(_in_microseconds(field.type, arrow)) for field in kind])
    return kind


def parquet_column(path: Path, column: str, first: int = 0) -> Iterator[list[dict[str, Any]]] | None:
    """The rows of a parquet file from number `first` on, in lists of up to 256, with one column alone; dots go into objects.
    None where the file has no such column, and where it is none of text. Raises `UserError`."""
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        schema = file.schema_arrow
        name = column if column in schema.names else column.split(".")[0]
        if name not in schema.names or (name == column and not _is_text(arrow, schema.field(name).type)):
            return None
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None

    def batches() -> Iterator[list[dict[str, Any]]]:
        skip = first
        groups: list[int] = []
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if skip >= rows and not groups:
                skip -= rows
            else:
                groups.append(group)
        try:
            for batch in file.iter_batches(batch_size=256, columns=[name], row_groups=groups) if groups else ():
                taken = _values_of(batch.slice(skip), arrow)
                skip = max(0, skip - batch.num_rows)
                if taken:
                    yield taken
        except (OSError, ValueError, arrow.ArrowException) as error:
            raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None

    return batches()


def _is_text(arrow: Any, kind: Any) -> bool:
    """Text, or text by number as dictionaries have it; bytes are read as text where they are UTF-8."""
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    texts = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_binary, arrow.types.is_large_binary)
    return any(is_one(kind) for is_one in texts)


def open_zst(path: Path) -> IO[bytes]:
    """A zstd file's bytes, unpacked by pyarrow; it cannot seek. Raises `UserError` where pyarrow is missing."""
    arrow, _ = _pyarrow("files packed with zstd")
    return cast(IO[bytes], io.BufferedReader(arrow.CompressedInputStream(arrow.OSFile(str(path)), "zstd"), 1 << 20))


def count_parquet_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer. Raises `UserError`."""
    arrow, parquet = _pyarrow()
    try:
        return int(parquet.ParquetFile(path).metadata.num_rows)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


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
    arrow, parquet = _pyarrow()
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
    table = arrow.table(columns).replace_schema_metadata({_JSON_COLUMNS: json.dumps(encoded).encode()})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    write_atomically(path, buffer.getvalue())


def _pyarrow(what: str = "parquet files") -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{what} need pyarrow: run `pip install pyarrow`, or use a .jsonl file") from None
