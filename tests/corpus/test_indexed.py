"""Corpora on disk that are not what they should be: one line each."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_ring.corpus.indexed import open_source
from megatron_ring.errors import UserError
from tests.corpus.writing import random_documents, write_corpus

WHOLE = (1.0, 0.0, 0.0)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "web", random_documents(30))


def test_a_sound_corpus_is_counted(corpus: Path) -> None:
    documents = random_documents(30)
    source = open_source(corpus, (8, 1, 1), 500, "--data.train")
    assert source.documents == 30 and source.tokens == sum(map(len, documents)) == sum(source.part_tokens)
    assert source.bounds == (0, 24, 27, 30)
    assert source.part_tokens[1] == sum(map(len, documents[24:27]))
    again = write_corpus(corpus.with_name("moved"), documents)
    assert open_source(again, WHOLE, 500, "").key == source.key
    other = write_corpus(corpus.with_name("other"), [*documents[:-1], documents[-1][:-1]])
    assert open_source(other, WHOLE, 500, "").key != source.key


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_types_of_tokens(tmp_path: Path, dtype: type) -> None:
    prefix = write_corpus(tmp_path / "typed", random_documents(9), dtype)
    assert open_source(prefix, WHOLE, 500, "").tokens == sum(map(len, random_documents(9)))


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def test_files_that_are_broken(corpus: Path, tmp_path: Path) -> None:
    index, data = Path(f"{corpus}.idx"), Path(f"{corpus}.bin")
    whole, tokens = index.read_bytes(), data.read_bytes()
    cases = [
        (index, whole[:100], "web.idx: truncated, 100 bytes of"),
        (index, whole[:20], "web.idx: truncated, 20 bytes are no whole header"),
        (index, b"", "web.idx: not an index"),
        (index, b"PK\x03\x04" + whole[4:], "web.idx: not an index"),
        (index, whole[:9] + struct.pack("<Q", 2) + whole[17:], "web.idx: version 2"),
        (index, whole[:17] + b"\x07" + whole[18:], "tokens of type 7, not integers"),
        (index, whole[:18] + struct.pack("<QQ", 0, 0), "web.idx: holds no document"),
        (index, whole[:18] + struct.pack("<Q", 2**60) + whole[26:], "web.idx: truncated"),
        (data, tokens[:-4], "the index needs"),
        (data, b"", "the index needs"),
        (data, b"\xff" * len(tokens), "holds token id -1"),
    ]  # fmt: skip
    for path, content, said in cases:
        index.write_bytes(whole)
        data.write_bytes(tokens)
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            open_source(corpus, WHOLE, 500, "--data.train")
    index.unlink()
    with pytest.raises(UserError, match=r"--data.train .*web: there is no .*web.idx"):
        open_source(corpus, WHOLE, 500, "--data.train")


def test_another_tokenizer(corpus: Path) -> None:
    with pytest.raises(UserError, match="has 0 to 399: the corpus was made with another tokenizer"):
        open_source(corpus, WHOLE, 400, "")


def test_documents_without_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all 3 documents are empty"):
        open_source(write_corpus(tmp_path / "none", [[], [], []]), WHOLE, 500, "")
