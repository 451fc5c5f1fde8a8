"""Text for pretraining in small: there on any Python installation, the same each time, and its tokenizer holds it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from tools import make_text_data


def write(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["make_text_data.py", *flags])
    make_text_data.main()


def test_text_of_this_installation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(monkeypatch, "--out", str(tmp_path / name), "--megabytes", "0.2", "--vocab-size", "300")
    for name in ("manual.jsonl", "sources.jsonl", "tokenizer/tokenizer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "one/sources.jsonl").read_text().splitlines()]
    assert len(rows) > 3 and all(row["text"].strip() for row in rows)
    assert any("def " in row["text"] for row in rows) and len({row["source"] for row in rows}) == len(rows)
    tokenizer = RingTokenizer.load(tmp_path / "one/tokenizer")
    assert tokenizer.vocab_size == 300 and tokenizer.decode(tokenizer.encode(rows[0]["text"])) == rows[0]["text"]


def test_no_text_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--megabytes 0"):
        write(monkeypatch, "--out", str(tmp_path), "--megabytes", "0")
