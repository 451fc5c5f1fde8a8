"""Rows of parquet files as plain JSON values, whatever the types of their columns.

Values that JSON lacks become what a reader would write for them: dates and times their ISO text, decimals a whole number or
text, bytes their UTF-8 text or else base64. A number that is not a number (NaN, as pandas writes what is missing) is null.
A date that Python lacks (of the year 20000, of an unknown time zone) is a number of its unit.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import importlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from megatron_ring.errors import UserError

JSON_COLUMNS = b"megatron_ring.json_columns"
"""Key of a file's metadata: names of columns that hold JSON text."""


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
    arrow, parquet = pyarrow()
    try:
        file = parquet.ParquetFile(path)
        twice = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
        if twice:
            raise UserError(f"{path}: two columns are called {twice[0]!r}: keep one")
        encoded = set(json.loads((file.schema_arrow.metadata or {}).get(JSON_COLUMNS, b"[]")))
        for batch in file.iter_batches(batch_size=4096):
            for row in _values_of(batch, arrow):
                whole = {key: plain_value(value) for key, value in row.items()}
                yield {
                    key: json.loads(value) if key in encoded else value for key, value in whole.items() if value is not None
                }
    except (OSError, ValueError, OverflowError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


def _values_of(batch: Any, arrow: Any) -> list[dict[str, Any]]:
    """The rows of a batch."""
    columns = {name: _column(column, arrow) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _column(column: Any, arrow: Any) -> list[Any]:
    """Values of a column. Times are those that Python has: to the microsecond; where it has none, numbers of their unit."""
    kind, types = column.type, arrow.types
    as_text = _mapped(kind, lambda one: arrow.string() if types.is_float32(one) else one, arrow)
    if as_text != kind:  # 0.1 stays 0.1, and does not become 0.10000000149011612
        wide = _mapped(kind, lambda one: arrow.float64() if types.is_float32(one) else one, arrow)
        column, kind = column.cast(as_text).cast(wide), wide
    try:
        return cast(list[Any], column.to_pylist())
    except (ValueError, OverflowError, KeyError):  # nanoseconds, a year beyond 9999, an unknown time zone (pytz has its own)
        pass
    try:
        microseconds = _mapped(kind, lambda one: _in_microseconds(one, arrow), arrow)
        return cast(list[Any], column.cast(microseconds, safe=False).to_pylist())
    except (ValueError, OverflowError, KeyError):
        numbers = _mapped(kind, lambda one: _in_numbers(one, arrow), arrow)
        return cast(list[Any], column.cast(numbers).to_pylist())


def _mapped(kind: Any, change: Callable[[Any], Any], arrow: Any) -> Any:
    """An arrow type whose innermost types, those of lists and objects too, are changed."""
    types = arrow.types

    def inner(one: Any) -> Any:
        return _mapped(one, change, arrow)

    if types.is_dictionary(kind):
        return kind if inner(kind.value_type) == kind.value_type else inner(kind.value_type)
    if types.is_map(kind):
        return arrow.map_(inner(kind.key_type), inner(kind.item_type))
    if types.is_struct(kind):
        return arrow.struct([field.with_type(inner(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return arrow.list_(inner(kind.value_type), kind.list_size)
    if types.is_list(kind):
        return arrow.list_(kind.value_field.with_type(inner(kind.value_type)))
    if types.is_large_list(kind):
        return arrow.large_list(kind.value_field.with_type(inner(kind.value_type)))
    return change(kind)


def _in_microseconds(kind: Any, arrow: Any) -> Any:
    types = arrow.types
    if types.is_timestamp(kind) and kind.unit == "ns":
        return arrow.timestamp("us", kind.tz)
    if types.is_duration(kind) and kind.unit == "ns":
        return arrow.duration("us")
    return arrow.time64("us") if types.is_time64(kind) else kind


def _in_numbers(kind: Any, arrow: Any) -> Any:
    types = arrow.types
    if types.is_date32(kind) or types.is_time32(kind):
        return arrow.int32()
    return arrow.int64() if types.is_temporal(kind) and not types.is_interval(kind) else kind


def parquet_column(path: Path, column: str, first: int = 0) -> Iterator[list[dict[str, Any]]] | None:
    """The rows of a parquet file from number `first` on, in lists of up to 256, with one column alone; dots go into objects.
    None where the file has no such column, and where it is none of text. Raises `UserError`."""
    arrow, parquet = pyarrow()
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


def count_parquet_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer. Raises `UserError`."""
    arrow, parquet = pyarrow()
    try:
        return int(parquet.ParquetFile(path).metadata.num_rows)
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}): write it again") from None


def pyarrow(what: str = "parquet files") -> tuple[Any, Any]:
    """pyarrow and its module of parquet files. Raises `UserError` where it is not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise UserError(f"{what} need pyarrow: run `pip install pyarrow`, or use a .jsonl file") from None
