"""Prompt and SFT files: round trips, and one line that names the place of every mistake."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.data.files import (
    Message,
    PromptRecord,
    SFTRecord,
    read_prompts,
    read_sft,
    write_prompts,
    write_sft,
)
from megatron_ring.errors import UserError

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
json_values = st.recursive(
    st.one_of(words, st.integers(-(10**12), 10**12), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=5,
)
functions = st.lists(st.builds(lambda name: {"type": "function", "function": {"name": name}}, words), min_size=1, max_size=2)
tools = st.one_of(st.just(""), functions.map(lambda found: json.dumps(found, ensure_ascii=False)))
called = st.builds(lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}},
                   words, st.dictionaries(words, json_values, max_size=2))  # fmt: skip
calls = st.one_of(st.just(""), called.map(lambda one: json.dumps([one], ensure_ascii=False)))
turns = st.tuples(words, words, calls).map(
    lambda drawn: (Message("user", drawn[0]), Message("assistant", drawn[1], calls=drawn[2]))
)
conversations = st.tuples(st.lists(turns, min_size=1, max_size=3), tools).map(
    lambda drawn: (replace(drawn[0][0][0], tools=drawn[1]), *[one for pair in drawn[0] for one in pair][1:])
)
prompt_records = st.lists(
    st.builds(
        PromptRecord,
        id=words,
        domain=words,
        prompt=st.one_of(words, conversations.map(lambda messages: messages[:-1])),
        answer=json_values,
        metadata=st.dictionaries(words, json_values, max_size=2),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda record: record.id,
)
sft_records = st.lists(
    st.builds(SFTRecord, messages=conversations, domain=words, source=st.one_of(st.just(""), words)),
    min_size=1,
    max_size=4,
)
suffixes = st.sampled_from([".jsonl", ".parquet"])


def need(suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@settings(max_examples=40, deadline=None)
@given(prompts=prompt_records, sft=sft_records)
def test_round_trip(tmp_path_factory, suffix: str, prompts: list[PromptRecord], sft: list[SFTRecord]) -> None:
    need(suffix)
    folder = tmp_path_factory.mktemp("files")
    write_prompts(folder / f"new/prompts{suffix}", prompts)
    write_sft(folder / f"new/sft{suffix}", sft)
    assert read_prompts(folder / f"new/prompts{suffix}") == prompts
    assert read_sft(folder / f"new/sft{suffix}") == sft
    assert sorted(path.name for path in (folder / "new").iterdir()) == [f"prompts{suffix}", f"sft{suffix}"]


def test_foreign_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"id": "a", "domain": "math", "prompt": "1+1?", "answer": {"value": "2"}, "metadata": None, "extra": 1},
        {"id": "b", "domain": "math", "prompt": "1+2?", "answer": {"value": "3"}, "metadata": {"level": 4}, "extra": 2},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    first, second = read_prompts(tmp_path / "p.parquet")
    assert (first.answer, first.metadata, second.metadata) == ({"value": "2"}, {}, {"level": 4})
    rows[1]["domain"] = None
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p\.parquet:2: 'domain' is missing"):
        read_prompts(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"p\.parquet: not a readable parquet"):
        read_prompts(tmp_path / "p.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # makes the import fail, as where it is not installed
    with pytest.raises(UserError, match="pip install pyarrow"):
        write_sft(tmp_path / "a.parquet", [SFTRecord((Message("user", "a"), Message("assistant", "b")))])


GOOD = {"id": "1", "domain": "math", "prompt": "1+1?", "answer": "2"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"not JSON at column 2 \("),
        (b'{"id": "1", "domain": "ma', r"not JSON at column 23 \("),
        (b'{"id": "1",\r', r"not JSON at column 12 \("),
        (b"[]", "expected an object, found an empty list"),
        (b'"\xff"', "not UTF-8"),
        (json.dumps({**GOOD, "id": 3.5}), "'id' is a number: make it text"),
        (json.dumps({**GOOD, "id": " "}), "'id' is empty"),
        (json.dumps({**GOOD, "answer": None}), "'answer' is missing"),
        (json.dumps({**GOOD, "answer": float("nan")}), "'answer' is missing"),
        (json.dumps({**GOOD, "domain": True}), "'domain' is true or false"),
        (json.dumps({**GOOD, "metadata": "x"}), "'metadata' is text"),
        (json.dumps({**GOOD, "prompt": 5}), "'prompt' is a number"),
        (json.dumps({**GOOD, "prompt": []}), "'prompt' is an empty list"),
        (json.dumps({**GOOD, "prompt": "\ud800"}), "surrogate"),
        (json.dumps({**GOOD, "prompt": [{"role": "human", "content": "a"}]}), "message 0 of 'prompt' has role 'human'"),
        (json.dumps({**GOOD, "prompt": [{"role": "user"}]}), "message 0 of 'prompt' has no text"),
        (json.dumps({**GOOD, "prompt": [{"role": "assistant", "content": "a"}]}), "begins with an assistant"),
        (json.dumps({**GOOD, "prompt": [{"role": "system", "content": "a"}]}), "ends with a message of role system"),
        (b'{"id": ' + b"9" * 5000 + b"}", "too many digits"),
        (b"[" * 200_000, "nested too deeply"),
        (json.dumps({**GOOD, "id": "0"}), r"the id '0' is already used at .*p\.jsonl:1"),
    ],
)
def test_mistakes_in_prompt_files(tmp_path: Path, line: str | bytes, message: str) -> None:
    path = tmp_path / "p.jsonl"
    first = json.dumps({**GOOD, "id": "0"}).encode()
    path.write_bytes(b"\n".join([first, b"", line if isinstance(line, bytes) else line.encode(), b""]))
    with pytest.raises(UserError, match=rf"p\.jsonl:3: .*{message}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "'response' is missing"),
        ({"response": "a"}, "neither 'messages' nor"),
        ({"messages": [{"role": "user", "content": "a"}]}, "ends with a message of role user"),
        ({"messages": "a"}, "'messages' is text"),
        ({"messages": [{"role": "user", "content": "a"}], "response": "b"}, "keep one of the two forms"),
        ({"prompt": "a", "response": "b", "source": 1}, "'source' is a number"),
    ],
)
def test_mistakes_in_sft_files(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=rf"s\.jsonl:1: .*{message}"):
        read_sft(path)


def test_sft_defaults_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a\xe2\x80\xa8b", "response": "c"}\r\n\r\n')
    assert read_sft(path) == [SFTRecord((Message("user", "a\u2028b"), Message("assistant", "c")), "other", "")]


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_sft(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"unknown kind of file: name it \.jsonl"):
        read_sft(tmp_path / "data.csv")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no records"):
        read_prompts(tmp_path / "empty.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_sft(tmp_path / "file/sft.jsonl", [])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    record = SFTRecord((Message("user", "a"), Message("assistant", "b")))
    write_sft(path, [record])
    broken = SFTRecord((Message("user", "\ud800"), Message("assistant", "b")))
    with pytest.raises(UnicodeEncodeError):
        write_sft(path, [record, broken])
    assert read_sft(path) == [record]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.jsonl"]
