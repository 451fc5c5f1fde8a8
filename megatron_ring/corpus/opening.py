"""Open a corpus for reading: refuse what is not whole or not of this tokenizer, before a run starts on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_ring.corpus.index_file import Index, read_index
from megatron_ring.corpus.manifest import Manifest, manifest_path, read_manifest, sha256_of
from megatron_ring.errors import UserError

_SAMPLES, _SAMPLE_TOKENS = 64, 4096


@dataclass(frozen=True)
class Corpus:
    """A corpus that was checked.

    Attributes:
        prefix: path without `.bin` and `.idx`, as megatron-core takes it.
        index: what `.idx` says: `documents`, `tokens`, `dtype`.
        manifest: None for a corpus that another project made.
        note: one line about how it was read, for the run's start.
    """

    prefix: Path
    index: Index
    manifest: Manifest | None
    note: str

    @property
    def documents(self) -> int:
        return self.index.documents

    @property
    def tokens(self) -> int:
        return self.index.tokens

    def dataset(self) -> Any:
        """megatron-core's `IndexedDataset` of it: item i is sequence i, an array of token ids."""
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        return IndexedDataset(str(self.prefix))


def open_corpus(prefix: str | Path, tokenizer_fingerprint: str | None = None, vocab_size: int | None = None) -> Corpus:
    """Check `PREFIX.bin` and `PREFIX.idx`, and the manifest beside them, in well under a second whatever their size.

    Checked are: `.idx` is whole and agrees with the size of `.bin`; both have the sizes of the manifest; the manifest's
    tokenizer is this one; no token lies outside the vocabulary (the manifest's largest id, and samples from all over
    `.bin`). A corpus without a manifest, of another project, is opened as it is; `Corpus.note` says so.

    Args:
        prefix: the path before `.bin`; one that ends in `.bin` or `.idx` is taken, too.
        tokenizer_fingerprint: `RingTokenizer.vocabulary_fingerprint` (or `.fingerprint`) of the tokenizer in use; None:
            not compared. A changed chat template alone does no harm when the first is given.
        vocab_size: `RingTokenizer.vocab_size`, or the model's; None: tokens are not compared with it.

    Raises:
        UserError: in one line, what is wrong with which file.
    """
    prefix = _without_suffix(Path(prefix))
    index, manifest = read_index(prefix), read_manifest(manifest_path(prefix))
    if manifest is not None:
        for kind in ("bin", "idx"):
            file = prefix.with_name(f"{prefix.name}.{kind}")
            said, found = manifest.files[kind]["bytes"], file.stat().st_size
            if said != found:
                raise UserError(f"{file}: {found:,} bytes, its manifest says {said:,}: copy or prepare the corpus again")
        known = (manifest.tokenizer["vocabulary_fingerprint"], manifest.tokenizer["fingerprint"])
        if tokenizer_fingerprint is not None and tokenizer_fingerprint not in known:
            raise UserError(
                f"{prefix}: prepared with another tokenizer (of {manifest.tokenizer['vocab_size']:,} ids): give that one, "
                f"or prepare the corpus again"
            )
    if vocab_size is not None:
        largest = max(_largest_sampled(prefix, index), -1 if manifest is None else manifest.largest_token)
        if largest >= vocab_size:
            raise UserError(
                f"{prefix}.bin: holds token {largest:,}, the vocabulary has {vocab_size:,}: it was made with another "
                f"tokenizer; prepare it again"
            )
    amount = f"{prefix}: {index.documents:,} documents, {index.tokens:,} tokens"
    other = "" if manifest is not None else ", without a manifest: its tokenizer cannot be checked"
    return Corpus(prefix, index, manifest, amount + other)


def verify_corpus(prefix: str | Path) -> Corpus:
    """`open_corpus`, and then read both files whole and compare their checksums with the manifest. Raises `UserError`."""
    corpus = open_corpus(prefix)
    if corpus.manifest is None:
        raise UserError(f"{manifest_path(corpus.prefix)}: no such file: without it there are no checksums to compare")
    for kind in ("bin", "idx"):
        file = corpus.prefix.with_name(f"{corpus.prefix.name}.{kind}")
        if sha256_of(file) != corpus.manifest.files[kind]["sha256"]:
            raise UserError(f"{file}: its checksum is not that of the manifest: copy or prepare the corpus again")
    return corpus


def _without_suffix(path: Path) -> Path:
    return path.with_name(path.stem) if path.suffix in (".bin", ".idx") else path


def _largest_sampled(prefix: Path, index: Index) -> int:
    """The largest id of blocks from all over the file; a negative one is as bad as one that is too large."""
    tokens = np.memmap(f"{prefix}.bin", index.dtype, "r")
    size = min(_SAMPLE_TOKENS, len(tokens))
    largest = 0
    for first in np.linspace(0, len(tokens) - size, num=_SAMPLES, dtype=np.int64):
        block = tokens[first : first + size]
        if block.min() < 0:
            raise UserError(f"{prefix}.bin: holds negative tokens: it is damaged, or not a corpus; prepare it again")
        largest = max(largest, int(block.max()))
    return largest
