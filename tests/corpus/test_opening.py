"""What is not whole, or not of this tokenizer, is refused in one line before a run starts on it."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_ring.corpus.manifest import manifest_path
from megatron_ring.corpus.opening import open_corpus, verify_corpus
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from tools import prepare_corpus


@pytest.fixture
def prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jsonl: Path, tokenizer_dir: Path) -> Path:
    flags = ["--input", str(jsonl), "--tokenizer", str(tokenizer_dir), "--out", str(tmp_path / "c"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["prepare_corpus.py", *flags])
    prepare_corpus.main()
    return tmp_path / "c"


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("kind", ["bin", "idx"])
def test_files_of_another_size(kind: str, manifest: bool, prefix: Path) -> None:
    if not manifest:
        manifest_path(prefix).unlink()
    path = prefix.with_name(f"c.{kind}")
    whole = path.read_bytes()
    for size in (0, 5, 30, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"c\.{kind}: "):
            open_corpus(prefix)
    path.write_bytes(whole + b"\0\0")
    with pytest.raises(UserError, match=rf"c\.{kind}: too long"):
        open_corpus(prefix)
    path.unlink()
    with pytest.raises(UserError, match="no such file"):
        open_corpus(prefix)


def test_another_tokenizer(prefix: Path, tokenizer: RingTokenizer) -> None:
    for own in (tokenizer.fingerprint, tokenizer.vocabulary_fingerprint, None):
        assert open_corpus(prefix, own, tokenizer.vocab_size).documents > 300
    with pytest.raises(UserError, match="another tokenizer"):
        open_corpus(prefix, "0" * 32)
    with pytest.raises(UserError, match="the vocabulary has 100"):
        open_corpus(prefix, None, 100)
    manifest_path(prefix).unlink()
    with pytest.raises(UserError, match="the vocabulary has 100"):
        open_corpus(prefix, None, 100)


def test_damage_that_sizes_do_not_show(prefix: Path) -> None:
    data = bytearray(Path(f"{prefix}.bin").read_bytes())
    data[100] ^= 1
    Path(f"{prefix}.bin").write_bytes(data)
    open_corpus(prefix)
    with pytest.raises(UserError, match="checksum"):
        verify_corpus(prefix)
    index = Path(f"{prefix}.idx")
    whole = index.read_bytes()
    count = struct.unpack_from("<Q", whole, 18)[0]
    lengths = np.frombuffer(whole, "<i4", count, 34).copy()
    lengths[3] += 1
    index.write_bytes(whole[:34] + lengths.tobytes() + whole[34 + count * 4 :])
    with pytest.raises(UserError, match="lengths and offsets do not agree"):
        open_corpus(prefix)
    index.write_bytes(b"PK" + whole[2:])
    with pytest.raises(UserError, match="not an index"):
        open_corpus(prefix)
    index.write_bytes(whole)
    manifest_path(prefix).write_text("{}")
    with pytest.raises(UserError, match="not a manifest"):
        open_corpus(prefix)
