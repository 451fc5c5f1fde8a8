"""A corpus cut by documents into what is trained, validated and tested. A "document" here is a sequence of the index, as
it is to megatron-core's `GPTDataset`. Loads neither torch nor megatron."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_ring.config.checks import require
from megatron_ring.corpus.index_file import sequence_lengths
from megatron_ring.corpus.opening import Corpus
from megatron_ring.errors import UserError, naming

SAMPLES, SAMPLE_BYTES = 64, 4096
_BLOCK = 1 << 24  # lengths in memory at a time


@dataclass(frozen=True)
class Source:
    """What a run knows of a corpus.

    Attributes:
        tokens: of all documents.
        bounds: first document of the trained, the validated and the tested part, and the end.
        part_tokens: tokens of each of these parts.
        key: tells it by its content (32 hex digits), wherever it lies.
        tokenizer_known: whether its manifest said which tokenizer made it; a corpus of another project has none.
    """

    prefix: Path
    documents: int
    tokens: int
    bounds: tuple[int, int, int, int]
    part_tokens: tuple[int, int, int]
    key: str
    tokenizer_known: bool


def divide(corpus: Corpus, split: tuple[float, float, float]) -> Source:
    """Cut a corpus.

    Args:
        split: shares of its documents in order, of any sum.

    Raises:
        UserError: the lengths of the documents are not those of the tokens.
    """
    index, prefix = corpus.index, corpus.prefix
    lengths = sequence_lengths(prefix, index)
    total, documents = sum(split), index.sequences
    cuts = [0, *(round(sum(split[:number]) / total * documents) for number in range(1, 4))]  # as megatron-core does
    tokens = []
    for first, end in pairwise(cuts):
        blocks = [lengths[at : min(at + _BLOCK, end)] for at in range(first, end, _BLOCK)]
        tokens.append(sum(int(block.sum(dtype=np.int64)) for block in blocks))
        negative = any(block.min() < 0 for block in blocks)
        require(not negative, f"{prefix}.idx: damaged, a document has a negative length; prepare the corpus again")
    require(
        sum(tokens) == index.tokens,
        f"{prefix}.idx: damaged, its documents have {sum(tokens):,} tokens, {prefix.name}.bin has {index.tokens:,}; prepare "
        f"the corpus again",
    )
    bounds, parts = (cuts[0], cuts[1], cuts[2], cuts[3]), (tokens[0], tokens[1], tokens[2])
    return Source(prefix, documents, index.tokens, bounds, parts, _fingerprint(prefix), corpus.manifest is not None)


def check_ids(tokens: np.ndarray, vocabulary: int, path: Path) -> None:
    """Raise `UserError` for ids that the tokenizer has not."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"{path}: holds token id {low if low < 0 else high}, --data.tokenizer has 0 to {vocabulary - 1}: the corpus was "
            f"made with another tokenizer, or is damaged"
        )


def _fingerprint(prefix: Path) -> str:
    """Sizes, and 64 samples of 4 KiB of each file, evenly spaced."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (Path(f"{prefix}.idx"), Path(f"{prefix}.bin")):
        with naming(path), path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.suffix} {size}".encode())
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
