"""Sequences of one corpus: megatron-core's `GPTDataset`, one for each epoch.

An epoch shuffles the documents, lays them end to end, cuts that into sequences and shuffles these. Its order depends on the
seed, the epoch and the sequence length alone: not on how many epochs a run will have, as one `GPTDataset` of several epochs
does. What is left at an epoch's end and fills no sequence is not read in it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from megatron.core import __version__ as megatron_version
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from megatron_ring.corpus.parts import Source, check_ids
from megatron_ring.data.packing import MicroBatch
from megatron_ring.parallel import collectives

EPOCH_SEED = 1_000_003


@dataclass(frozen=True)
class Sequence:
    """`tokens` int64 [L + 1]: L of a sequence and the one behind it; `starts`: where documents begin, from 1 on."""

    tokens: np.ndarray
    starts: tuple[int, ...]

    def micro_batch(self, reset: bool) -> MicroBatch:
        """One micro-batch [L]. `reset`: documents are segments of their own, and none is to predict the next one's first
        token."""
        tokens, length = torch.from_numpy(self.tokens), len(self.tokens) - 1
        starts = [start for start in self.starts if start <= length] if reset else []
        loss_mask = torch.ones(length, dtype=torch.bool)
        for start in starts:
            loss_mask[start - 1] = False
        bounds = torch.tensor([0, *(start for start in starts if start < length), length], dtype=torch.int32)
        firsts = torch.repeat_interleave(bounds[:-1].long(), bounds.diff().long())
        positions = torch.arange(length) - firsts
        return MicroBatch(tokens[:-1], tokens[1:], loss_mask, positions, bounds, torch.ones(length, dtype=torch.bool))


class SourceSequences:
    """The sequences of a part of a corpus, numbered from 0 over all epochs.

    Attributes: `per_epoch`, the sequences of an epoch (0: there are too few tokens).

    Args:
        part: 0 trained, 1 validated, 2 tested.
        length: tokens of a sequence.
        vocabulary: ids that the tokenizer has.
        cache: folder for the indices of epochs, the same on all ranks; None keeps them in memory and needs no process group.
    """

    def __init__(
        self, source: Source, part: int, length: int, seed: int, vocabulary: int, cache: Path | None = None
    ) -> None:
        self.source, self.part, self.length, self.seed = source, part, length, seed
        self.per_epoch = max(0, source.part_tokens[part] - 1) // length
        self._vocabulary, self._cache = vocabulary, cache
        self._indexed: Any = None
        self._epochs: dict[int, Any] = {}

    def open(self, first: int, last: int) -> None:
        """Be ready to read the sequences `first` to `last`. All ranks take part together where there is a cache."""
        needed = range(first // self.per_epoch, last // self.per_epoch + 1)
        self._epochs = {epoch: self._epochs[epoch] for epoch in needed if epoch in self._epochs}
        for epoch in needed:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._open(epoch)

    def read(self, number: int) -> Sequence:
        """Sequence `number`, of an epoch that is open. Raises `UserError` for ids that the tokenizer has not."""
        epoch, place = divmod(number, self.per_epoch)
        dataset = self._epochs[epoch]
        at = int(dataset.shuffle_index[place])
        (first, begin), (last, end) = (map(int, dataset.sample_index[i]) for i in (at, at + 1))
        parts: list[np.ndarray] = []
        starts, found = [], 0
        for index in range(first, last + 1):
            document = int(dataset.document_index[index])
            offset = begin if index == first else 0
            stop = end + 1 if index == last else int(self._indexed.sequence_lengths[document])
            if stop <= offset:
                continue  # an empty document
            if found and offset == 0:
                starts.append(found)
            parts.append(self._indexed.get(document, offset=offset, length=stop - offset))
            found += stop - offset
        tokens = np.concatenate(parts, dtype=np.int64)
        check_ids(tokens, self._vocabulary, Path(f"{self.source.prefix}.bin"))
        return Sequence(tokens, tuple(starts))

    def _open(self, epoch: int) -> Any:
        if self._indexed is None:
            self._indexed = IndexedDataset(str(self.source.prefix), mmap=True)
        if self._cache is None:
            return self._dataset(epoch, "")
        first, last = self.source.bounds[self.part : self.part + 2]
        name = f"{self.source.key}-{first}-{last}-{self.length}-{self.seed}-{epoch}-{megatron_version}"
        folder, work = self._cache / name, self._cache / f".{name}.tmp"

        def build() -> None:
            if folder.is_dir():
                return
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            self._dataset(epoch, str(work))
            os.replace(work, folder)  # whole, or not there

        collectives.from_main(build)
        return self._dataset(epoch, str(folder))

    def _dataset(self, epoch: int, cache: str) -> Any:
        """The documents' order, where sequences are cut, and their order: from `cache`, or written to it by rank 0."""
        tokenizer = SimpleNamespace(vocab_size=None, unique_identifiers={})
        config = GPTDatasetConfig(
            random_seed=(self.seed + EPOCH_SEED * epoch) % 2**32,
            sequence_length=self.length,
            blend=([str(self.source.prefix)], None),
            split="1,0,0",
            path_to_cache=cache,
            tokenizer=tokenizer,  # knows nothing: sequences are read here, without its masks
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        first, last = self.source.bounds[self.part : self.part + 2]
        documents = np.arange(first, last, dtype=np.int32)
        return GPTDataset(self._indexed, self.source.key, documents, None, Split.train, config)
