"""Small corpora on disk, written by megatron-core's own builder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch


def write_corpus(prefix: Path, documents: Sequence[Sequence[int]], dtype: Any = np.int32) -> Path:
    """`prefix`.bin and .idx with these documents, each a sequence of its own."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def random_documents(count: int, seed: int = 0, vocabulary: int = 500, longest: int = 90) -> list[list[int]]:
    """Documents of uneven lengths, some empty, that end with token 0, which none holds elsewhere."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest, count)
    return [[*generator.integers(1, vocabulary, length).tolist(), 0] if length else [] for length in lengths]


def learnable_documents(count: int, seed: int = 0) -> list[list[int]]:
    """Documents in which each token follows from the last."""
    generator = np.random.default_rng(seed)
    firsts, lengths = generator.integers(0, 300, count), generator.integers(5, 120, count)
    return [
        [*((int(first) * 3 + 7 * place) % 299 + 1 for place in range(length)), 0]
        for first, length in zip(firsts, lengths, strict=True)
    ]
