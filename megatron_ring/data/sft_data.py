"""Fine-tuning data: conversations tokenized and packed once, then shuffled anew each epoch."""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from megatron_ring.config.sft import SFTDataConfig
from megatron_ring.data.fields import SFT_FIELDS, Fields
from megatron_ring.data.files import read_sft_file
from megatron_ring.data.packed_epochs import PackedEpochs
from megatron_ring.data.packing import MicroBatch, pack_sequences
from megatron_ring.data.records import SFTRecord
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.data.tokenizer import ControlTokenError, RingTokenizer, TrainOn
from megatron_ring.errors import UserError


def load_datasets(
    config: SFTDataConfig, tokenizer: RingTokenizer, seed: int, max_positions: int
) -> tuple[SFTDataset, SFTDataset | None]:
    """The packed training and validation conversations; `UserError` names the file that is at fault.

    Args:
        max_positions: of the model.
    """
    fields = Fields.of(config, SFT_FIELDS, "--data.fields")

    def load(path: Path) -> SFTDataset:
        try:
            file = read_sft_file(path, fields)
            return SFTDataset(
                file.records, tokenizer, config.context_length, config.global_batch, seed, config.overlong,
                train_on=config.train_on, control_tokens=config.control_tokens, max_positions=max_positions, note=file.note,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None

    return load(config.train), load(config.validation) if config.validation else None


class SFTDataset(PackedEpochs[MicroBatch]):
    """Packed conversations in global batches of `global_batch` micro-batches of `capacity` tokens.

    Attributes: `sequences` (packed), `dropped` (too long), `dropped_controls` (spell control tokens), `tokens` and
    `loss_tokens` (of one epoch, padding not counted), `packs`, `steps_per_epoch`, `fingerprint` (32 hex digits) of all
    tokens and of which are trained, in order.
    """

    def __init__(
        self,
        records: Sequence[SFTRecord],
        tokenizer: RingTokenizer,
        capacity: int,
        global_batch: int,
        seed: int,
        on_overlong: Literal["error", "drop"] = "error",
        instruction: str | None = None,
        *,
        train_on: TrainOn = "all",
        control_tokens: Literal["error", "drop", "keep"] = "error",
        max_positions: int | None = None,
        note: str = "",
    ) -> None:
        """Tokenize and plan.

        Args:
            on_overlong: what becomes of conversations of more than `capacity` tokens, or of more than `max_positions`:
                "error" refuses them, "drop" leaves them out and counts them in `dropped`.
            train_on: which of the assistant's messages are trained (`RingTokenizer.training_tokens`).
            control_tokens: what becomes of conversations that spell a control token: "error" refuses them, "drop" leaves
                them out and counts them in `dropped_controls`, "keep" takes the tokens for what they spell.
            max_positions: of the model (None: as many as the capacity).
            note: what is to be said of how the conversations were read.

        Raises:
            UserError: what cannot be packed or tokenized; names its place in the file.
        """
        super().__init__(capacity, global_batch, seed)
        self.note = note
        self._pad_id = tokenizer.pad_id
        self._sequences: list[TokenSequence] = []
        limit = min(capacity, max_positions or capacity)
        self.dropped = self.dropped_controls = 0
        self._take(
            (_tokenized(record, index, tokenizer, instruction, train_on, control_tokens)
             for index, record in enumerate(records)),
            limit, on_overlong,
        )  # fmt: skip
        self._plan_packs([len(sequence.tokens) for sequence in self._sequences])
        self.sequences = len(self._sequences)
        self.tokens = sum(len(sequence.tokens) for sequence in self._sequences)
        self.loss_tokens = sum(sum(sequence.loss_mask[1:]) for sequence in self._sequences)

    def _take(self, pairs: Iterable[TokenSequence | None], limit: int, on_overlong: str) -> None:
        """Keep the conversations of at most `limit` tokens; count those that are too long, and those that are None."""
        overlong: list[int] = []
        longest = index = 0
        digest = hashlib.blake2b(digest_size=16)
        for index, pair in enumerate(pairs, start=1):
            if pair is None:
                self.dropped_controls += 1
            elif len(pair.tokens) > limit:
                overlong.append(index)
                longest = max(longest, len(pair.tokens))
            else:
                # Arrays, not lists: 5 bytes a token instead of 44.
                ids, mask = array("i", pair.tokens), array("b", pair.loss_mask)
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
                self._sequences.append(TokenSequence(ids, mask))
        self.dropped = len(overlong)
        self.fingerprint = digest.hexdigest()
        self._check_lengths(index, overlong, longest, limit, on_overlong)

    def _micro_batch(self, items: Sequence[int]) -> MicroBatch:
        return pack_sequences([self._sequences[index] for index in items], self.capacity, self._pad_id)

    def _check_lengths(self, records: int, overlong: list[int], longest: int, limit: int, on_overlong: str) -> None:
        """Raise `UserError` for what is too long, by its 1-based places, and for nothing that is left."""
        if on_overlong not in ("error", "drop"):
            raise UserError(f"on_overlong={on_overlong!r}: use 'error' or 'drop'")
        if overlong and on_overlong == "error":
            first = ", ".join(str(index) for index in itertools.islice(overlong, 3))
            raise UserError(
                f"{len(overlong)} of {records} conversations are longer than {limit} tokens (the longest has "
                f"{longest}; records {first}{', ...' if len(overlong) > 3 else ''}): "
                + (
                    "raise the micro-batch capacity, or drop them"
                    if limit == self.capacity
                    else "the model has no more positions; drop them, or shorten them"
                )
            )
        if not self._sequences:
            raise UserError(
                f"no conversation is left to train on ({len(overlong)} of {records} are longer than {limit} "
                f"tokens, {self.dropped_controls} spell control tokens): give more data, or raise the micro-batch capacity"
            )


def _tokenized(
    record: SFTRecord, index: int, tokenizer: RingTokenizer, instruction: str | None, train_on: TrainOn, control_tokens: str
) -> TokenSequence | None:
    """A record's tokens; None where it is to be left out. Raises `UserError` with its place."""
    try:
        return tokenizer.training_tokens(record, instruction, train_on, control_tokens == "keep")
    except UserError as error:
        if isinstance(error, ControlTokenError) and control_tokens == "drop":
            return None
        raise UserError(f"{record.place or f'record {index + 1}'}: {error}") from None
