"""Values that JSON lacks, columns of parquet files, and rows that are no rows."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.files import read_prompts, read_sft
from megatron_ring.data.parquet import parquet_rows
from megatron_ring.data.rows import read_rows, write_rows
from megatron_ring.errors import UserError

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def test_values_that_json_lacks(tmp_path: Path) -> None:
    row = {
        "at": datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), "day": datetime.date(2026, 1, 2),
        "whole": decimal.Decimal("72.00"), "part": decimal.Decimal("0.10"), "text": b"abc", "bytes": b"\xff\x00",
        "nan": float("nan"), "inf": float("inf"), "nested": [{"n": float("nan"), "d": decimal.Decimal("1.5")}], "for": "x",
        "took": datetime.timedelta(seconds=3), "when": datetime.time(3, 4),
    }  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    (read,) = parquet_rows(tmp_path / "a.parquet")
    assert read == {
        "at": "2026-01-02T03:04:00+00:00", "day": "2026-01-02", "whole": 72, "part": "0.1", "text": "abc", "bytes": "/wA=",
        "inf": "inf", "nested": [{"n": None, "d": "1.5"}], "for": "x", "took": "0:00:03", "when": "03:04:00",
    }  # fmt: skip
    json.dumps(read, allow_nan=False)


def test_prompts_with_such_columns(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": "P", "answer": decimal.Decimal("72"), "added": datetime.datetime(2026, 1, 2), "score": float("nan")},
        {"problem": "Q", "answer": decimal.Decimal("73"), "added": datetime.datetime(2026, 1, 3), "score": 1.0},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [record.answer for record in read_prompts(tmp_path / "a.parquet")] == ["72", "73"]
    (tmp_path / "b.jsonl").write_text(
        '{"id": "1", "domain": "math", "prompt": "p", "answer": "2", "x": NaN, "y": -Infinity}'
    )
    assert read_prompts(tmp_path / "b.jsonl")[0].answer == "2"
    for answer in ("NaN", "null"):
        (tmp_path / "c.jsonl").write_text(f'{{"id": "1", "domain": "math", "prompt": "p", "answer": {answer}}}')
        with pytest.raises(UserError, match=r"c\.jsonl:1: 'answer' is missing"):
            read_prompts(tmp_path / "c.jsonl")
    rows[1]["answer"], rows[0]["answer"] = float("nan"), 1.0
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    with pytest.raises(UserError, match=r"d\.parquet:2: 'answer' is missing"):
        read_prompts(tmp_path / "d.parquet")


def test_columns_have_their_types(tmp_path: Path) -> None:
    rows = [
        {"t": "a", "n": 1, "f": 0.5, "b": True, "mixed": 1, "big": 2**70, "list": [1], "gap": 3},
        {"t": "b", "n": -2, "f": 1.0, "b": False, "mixed": "x", "big": 1, "list": []},
        {"t": "", "n": 0, "f": -0.0, "b": True, "mixed": 0.5, "big": 2, "list": [None], "gap": 4, "null": None},
    ]
    write_rows(tmp_path / "a.parquet", rows)
    types = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "a.parquet")}
    assert (types["t"], types["n"], types["f"], types["b"], types["gap"]) == ("string", "int64", "double", "bool", "int64")
    assert (types["mixed"], types["big"], types["list"]) == ("string", "string", "string")
    read = list(parquet_rows(tmp_path / "a.parquet"))
    assert read == rows and [type(row["mixed"]) for row in read] == [int, str, float]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b"[1, 2]", r"a\.json:1: expected an object, found a number"),
        ("a.json", b'[{"a": 1}', r"a\.json: not JSON at column"),
        ("a.json", b'{"a": 1}\n{"a"', r"a\.json:2: not JSON"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], r"a\.jsonl\.gz: cannot be read"),
        ("a.csv", b"a,b", r"a\.csv: unknown kind of file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / name))


def test_a_conversation_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('\n{"prompt": "a", "response": "b"}\n')
    assert read_sft(tmp_path / "s.jsonl")[0].place.endswith("s.jsonl:2")
