"""The tokenizer of one's own conversations: it holds any text, fits `ring-tiny`, and is the same for the same file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_ring.config.presets import get_preset
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from tools import train_tokenizer


def train(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *flags])
    train_tokenizer.main()


def test_a_tokenizer_of_ones_own_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"prompt": f"How much is {n} and {n}?", "response": f"\\boxed{{{2 * n}}}"} for n in range(40)]
    rows.append({"messages": [{"role": "user", "content": "naïve Ω?"}, {"role": "assistant", "content": "中文"}]})
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one", "two"):
        train(monkeypatch, "--input", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / name))
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]
    tokenizer = RingTokenizer.load(tmp_path / "one")
    assert tokenizer.vocab_size <= get_preset("ring-tiny").vocab_size
    tokens = tokenizer.prompt_tokens("How much is 7 and 😀?")
    assert "How much is 7 and 😀?" in tokenizer.decode(tokens)


def test_a_vocabulary_that_cannot_hold_all_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sft.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UserError, match="vocabulary size 100"):
        train(monkeypatch, "--input", str(tmp_path / "sft.jsonl"), "--out", str(tmp_path / "t"), "--vocab-size", "100")
