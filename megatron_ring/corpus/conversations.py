"""Fine-tuning data: conversations tokenised and packed once for all runs, mapped, shuffled anew each epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from megatron_ring.config.sft import SFTDataConfig
from megatron_ring.corpus.packs import open_packs
from megatron_ring.corpus.token_cache import cache_folders, open_store, remove_store
from megatron_ring.corpus.token_store import DamagedStoreError, TokenStore
from megatron_ring.corpus.tokenizing import TokenizingJob, nothing_left
from megatron_ring.data.fields import SFT_FIELDS, Fields
from megatron_ring.data.packed_epochs import PackedEpochs
from megatron_ring.data.packing import MicroBatch, pack_sequences
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError


def load_datasets(
    config: SFTDataConfig, tokenizer: RingTokenizer, seed: int, max_positions: int, run_dir: Path | None = None,
    tell: Callable[[str], None] = print,
) -> tuple[SFTDataset, SFTDataset | None]:  # fmt: skip
    """The packed training and validation conversations; `UserError` names the file that is at fault.

    Args:
        max_positions: of the model.
        run_dir: where what is tokenised may be kept; None: what is not there already is not kept.
        tell: what to do with a line about how far a long work is.
    """

    def load(path: Path) -> SFTDataset:
        folders = cache_folders(config.cache, path, run_dir)
        if run_dir is not None:
            return open_dataset(config, path, tokenizer, seed, folders, tell, max_positions)
        with tempfile.TemporaryDirectory(prefix="ring-tokenized-") as made:  # files that are mapped outlive their names
            return open_dataset(config, path, tokenizer, seed, folders, tell, max_positions, Path(made))

    return load(config.train), load(config.validation) if config.validation else None


def open_dataset(
    config: SFTDataConfig, path: Path, tokenizer: RingTokenizer, seed: int, folders: Sequence[Path],
    tell: Callable[[str], None] = print, max_positions: int | None = None, make_in: Path | None = None,
) -> SFTDataset:  # fmt: skip
    """The packed conversations of one file (`token_cache.open_store`). Raises `UserError` that names it."""
    fields = Fields.of(config, SFT_FIELDS, "--data.fields")
    job = TokenizingJob(path, fields, tokenizer, config.train_on, config.control_tokens)

    def opened() -> SFTDataset:
        store = open_store(job, folders, tell, make_in)
        try:
            return SFTDataset(
                store, path, tokenizer.pad_id, config.context_length, config.global_batch, seed, config.overlong,
                max_positions, tell,
            )  # fmt: skip
        except DamagedStoreError:
            remove_store(store)
            raise

    try:
        try:
            return opened()
        except DamagedStoreError as error:
            tell(f"{error.args[0].partition(':')[0]}: damaged since it was written: tokenised again")
            return opened()
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


class SFTDataset(PackedEpochs[MicroBatch]):
    """Packed conversations in global batches of `global_batch` packs of `capacity` tokens.

    Attributes: `sequences` (packed), `dropped` (too long), `dropped_controls` (spell control tokens), `tokens` and
    `loss_tokens` (of one epoch, padding not counted), `packs`, `steps_per_epoch`, `fingerprint` (32 hex digits) of all
    tokens and of which are trained, in order, `note` (what is to be said of how they were read), `folder` (where they lie).
    """

    def __init__(
        self,
        store: TokenStore,
        path: Path,
        pad_id: int,
        capacity: int,
        global_batch: int,
        seed: int,
        on_overlong: Literal["error", "drop"] = "error",
        max_positions: int | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        """Choose and pack.

        Args:
            path: the file that the store is of, for messages.
            on_overlong: what becomes of conversations of more than `capacity` tokens, or of more than `max_positions`:
                "error" refuses them, "drop" leaves them out and counts them in `dropped`.
            max_positions: of the model (None: as many as the capacity).

        Raises:
            UserError: what cannot be packed.
            DamagedStoreError: the store is not what was written.
        """
        super().__init__(capacity, global_batch, seed)
        self._store, self._pad_id, self.folder = store, pad_id, store.folder
        self.note = f"{path}: {store.manifest.remark}" if store.manifest.remark else ""
        self.dropped_controls = len(store.left_out)
        limit = min(capacity, max_positions or capacity)
        overlong = np.flatnonzero(store.lengths > limit)
        self.dropped = len(overlong)
        self._check_lengths(overlong, limit, on_overlong)
        packs = open_packs(store, limit, capacity, seed, tell)
        self._set_plan(packs)
        self.sequences, self.tokens = packs.figures.sequences, packs.figures.tokens
        self.loss_tokens, self.fingerprint = packs.figures.loss_tokens, packs.figures.fingerprint

    def _micro_batch(self, items: Sequence[int], tokens: int) -> MicroBatch:
        found = [TokenSequence(*self._store.read(index)) for index in items]
        self._store.let_go()
        # As in a pack, also across packs: long ones, which attention computes one by one, and then the short ones together.
        found.sort(key=lambda sequence: -len(sequence.tokens))
        return pack_sequences(found, tokens, self._pad_id)

    def _check_lengths(self, overlong: np.ndarray, limit: int, on_overlong: str) -> None:
        """Raise `UserError` for what is too long, by its 1-based places, and for nothing that is left."""
        if on_overlong not in ("error", "drop"):
            raise UserError(f"on_overlong={on_overlong!r}: use 'error' or 'drop'")
        count, records, lengths = len(overlong), self._store.manifest.records, self._store.lengths
        if count and on_overlong == "error":
            first = ", ".join(str(self._store.record_of(int(number))) for number in overlong[:3])
            raise UserError(
                f"{count} of {records} conversations are longer than {limit} tokens (the longest has "
                f"{lengths.max()}; records {first}{', ...' if count > 3 else ''}): "
                + (
                    "raise --data.context-length, or drop them"
                    if limit == self.capacity
                    else "the model has no more positions; drop them, or shorten them"
                )
            )
        if count == len(lengths):
            raise nothing_left(count, records, limit, self.dropped_controls)
