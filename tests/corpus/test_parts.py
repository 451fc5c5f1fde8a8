"""A corpus cut into parts: counted, known by its content, refused where its index and its tokens disagree."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_ring.corpus.opening import open_corpus
from megatron_ring.corpus.parts import Source, divide
from megatron_ring.errors import UserError
from tests.corpus.writing import random_documents, write_corpus

WHOLE = (1.0, 0.0, 0.0)


def opened(prefix: Path, split: tuple[float, float, float] = WHOLE) -> Source:
    return divide(open_corpus(prefix), split)


def test_parts_are_counted_and_a_corpus_is_known_by_its_content(tmp_path: Path) -> None:
    documents = random_documents(30)
    source = opened(write_corpus(tmp_path / "web", documents), (8, 1, 1))
    assert source.documents == 30 and source.tokens == sum(map(len, documents)) == sum(source.part_tokens)
    assert source.bounds == (0, 24, 27, 30)
    assert source.part_tokens[1] == sum(map(len, documents[24:27]))
    assert opened(write_corpus(tmp_path / "moved", documents)).key == source.key
    assert opened(write_corpus(tmp_path / "other", [*documents[:-1], documents[-1][:-1]])).key != source.key


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_types_of_tokens(tmp_path: Path, dtype: type) -> None:
    prefix = write_corpus(tmp_path / "typed", random_documents(9), dtype)
    assert opened(prefix).tokens == sum(map(len, random_documents(9)))


def test_lengths_that_samples_do_not_show_to_be_wrong(tmp_path: Path) -> None:
    """Of more documents than are sampled at opening, one that is not has another length."""
    prefix = write_corpus(tmp_path / "many", [[1, 0]] * 20_000)
    index = prefix.with_suffix(".idx")
    whole = index.read_bytes()
    for length in (3, -2):
        index.write_bytes(whole[: 34 + 4 * 3] + struct.pack("<i", length) + whole[34 + 4 * 4 :])
        with pytest.raises(UserError, match=r"many\.idx: damaged, "):
            opened(prefix)
