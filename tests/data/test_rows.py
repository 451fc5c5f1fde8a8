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
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), r"a\.jsonl: is UTF-16: save the file as UTF-8"),
        ("a.json", '[{"a": 1}]'.encode("utf-16-be"), r"a\.json:1: not JSON"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-le"), r"a\.jsonl: is UTF-16"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"a\.jsonl: is packed by gzip: let its name end in \.gz"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"a\.parquet: is a pointer of Git LFS",
        ),
        ("a.jsonl", b"\n<!DOCTYPE html>", r"a\.jsonl: is a web page"),
        (
            "a.jsonl.zst",
            arrow.compress(b'{"a": 1}\n' * 9, "zstd", asbytes=True)[:-4],
            r"a\.jsonl\.zst: cannot be read",
        ),
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


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.JSONL.ZST", "a.json.zst", "a.json"])
def test_files_as_they_are_downloaded(tmp_path: Path, name: str) -> None:
    """Also of several packed parts, with the mark of UTF-8 and the ends of lines of Windows."""
    text = b'\xef\xbb\xbf[{"a": 1},\r\n{"a": 2}]' if ".json." in name or name.endswith(".json") else b'{"a": 1}\r\n{"a": 2}'
    if name.lower().endswith(".gz"):
        text = gzip.compress(text[:12]) + gzip.compress(text[12:])
    if name.lower().endswith(".zst"):
        text = b"".join(arrow.compress(part, "zstd", asbytes=True) for part in (text[:12], text[12:]))
    (tmp_path / name).write_bytes(text)
    assert [row for _, row in read_rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


def test_dates_that_python_lacks_and_numbers_of_32_bits(tmp_path: Path) -> None:
    """Neither makes a file unreadable or an answer another one, also within lists, objects and maps."""
    nanoseconds, milliseconds = arrow.timestamp("ns"), arrow.timestamp("ms")
    columns = {
        "answer": arrow.array([0.1], arrow.float32()),
        "far": arrow.array([10**18], milliseconds),
        "zone": arrow.array([1_000_000], arrow.timestamp("us", "Mars/Base")),
        "day": arrow.array([10**8], arrow.date32()),
        "map": arrow.array([[("a", 10**9)]], arrow.map_(arrow.string(), nanoseconds)),
        "pair": arrow.array([[10**9, 2 * 10**9]], arrow.list_(nanoseconds, 2)),
        "deep": arrow.array([[{"t": 10**18, "f": 0.3, "s": "x"}]], arrow.list_(arrow.struct(
            [("t", milliseconds), ("f", arrow.float32()), ("s", arrow.string())]))),
        "kind": arrow.array(["k"]).dictionary_encode(),
        "times": arrow.array([10**9], nanoseconds).dictionary_encode(),
    }  # fmt: skip
    parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
    assert list(parquet_rows(tmp_path / "a.parquet")) == [{
        "answer": 0.1, "far": 10**18, "zone": 1_000_000, "day": 10**8, "map": [["a", "1970-01-01T00:00:01"]],
        "pair": ["1970-01-01T00:00:01", "1970-01-01T00:00:02"], "deep": [{"t": 10**18, "f": 0.3, "s": "x"}], "kind": "k",
        "times": "1970-01-01T00:00:01",
    }]  # fmt: skip
    twice = arrow.table([arrow.array(["1"]), arrow.array(["2"])], names=["answer", "answer"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: two columns are called 'answer': keep one"):
        list(parquet_rows(tmp_path / "b.parquet"))


def test_a_conversation_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text('\n{"prompt": "a", "response": "b"}\n')
    assert read_sft(tmp_path / "s.jsonl")[0].place.endswith("s.jsonl:2")
