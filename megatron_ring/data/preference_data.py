"""Preference data: both conversations of a pair tokenized and packed side by side, then shuffled anew each epoch.

The two are sequences of their own in one micro-batch: neither sees the other. A reward is read at the last token of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_ring.config.reward_model import PreferenceDataConfig
from megatron_ring.data.fields import Fields
from megatron_ring.data.packed_epochs import PackedEpochs
from megatron_ring.data.packing import MicroBatch, pack_sequences, plan_packs
from megatron_ring.data.preference_files import PREFERENCE_FIELDS, read_preference_file
from megatron_ring.data.preferences import Conversation, PreferenceRecord
from megatron_ring.data.records import SFTRecord
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.data.tokenizer import ControlTokenError, RingTokenizer
from megatron_ring.errors import UserError

OVERLONG_SHOWN = 3


@dataclass(frozen=True, eq=False)
class PreferenceBatch(MicroBatch):
    """A micro-batch of pairs. `loss_mask` is true at the last token of every conversation, in the order chosen, rejected,
    chosen, rejected, …"""

    margins: Tensor  # fp32 [T], of the pair, where `loss_mask`; else 0

    @property
    def loss_terms(self) -> int:
        """Pairs."""
        return int(self.loss_mask.sum()) // 2


@dataclass(frozen=True)
class TokenPair:
    """Tokens of a pair's two conversations, and of how many of them each answer is."""

    chosen: Sequence[int]
    rejected: Sequence[int]
    chosen_answer: int
    rejected_answer: int
    margin: float = 0.0
    subset: str = ""

    @property
    def length(self) -> int:
        return len(self.chosen) + len(self.rejected)


def pack_ends(sequences: Sequence[Sequence[int]], capacity: int, pad_id: int) -> MicroBatch:
    """Token sequences one after another, `loss_mask` true at the last token of each; see `pack_sequences`."""
    base = pack_sequences([TokenSequence(tokens, array("b", bytes(len(tokens)))) for tokens in sequences], capacity, pad_id)
    ends = torch.zeros(capacity, dtype=torch.bool)
    ends[base.cu_seqlens[1 : len(sequences) + 1].long() - 1] = True
    return dataclasses.replace(base, loss_mask=ends)


def preference_batch(pairs: Sequence[TokenPair], capacity: int, pad_id: int) -> PreferenceBatch:
    """Pairs one after another, chosen before rejected; errors as of `pack_sequences`."""
    base = pack_ends([tokens for pair in pairs for tokens in (pair.chosen, pair.rejected)], capacity, pad_id)
    margins = torch.zeros(capacity, dtype=torch.float32)
    margins[base.loss_mask] = torch.tensor([pair.margin for pair in pairs for _ in range(2)], dtype=torch.float32)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return PreferenceBatch(**values, margins=margins)


def conversation_tokens(conversation: Conversation, tokenizer: RingTokenizer, controls: bool) -> tuple[list[int], int]:
    """Tokens of a conversation up to the end that closes it, and how many of them are the last answer's, the end among them.
    A text without turns is all answer.

    Raises:
        UserError: as `RingTokenizer.training_tokens`.
    """
    if isinstance(conversation, str):
        tokens = tokenizer.text_tokens(conversation, controls)
        return tokens, len(tokens)
    found = tokenizer.training_tokens(SFTRecord(conversation), train_on="last", controls=controls)
    return list(found.tokens), sum(found.loss_mask)


def load_preferences(
    config: PreferenceDataConfig, tokenizer: RingTokenizer, seed: int, max_positions: int
) -> tuple[PreferenceDataset, PreferenceDataset | None]:
    """The packed training and validation pairs; `UserError` names the file that is at fault.

    Args:
        max_positions: of the model.
    """
    fields = Fields.of(config, PREFERENCE_FIELDS, "--data.fields")

    def load(path: Path) -> PreferenceDataset:
        try:
            file = read_preference_file(path, fields, config.pairs, config.bad_rows, config.margin == "column")
            return PreferenceDataset(file.records, tokenizer, config, seed, max_positions, file.note)
        except UserError as error:
            raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None

    return load(config.train), load(config.validation) if config.validation else None


class PreferenceDataset(PackedEpochs[PreferenceBatch]):
    """Packed pairs.

    Attributes: `pairs`, `subsets` (pairs of each), `dropped` (too long), `dropped_controls` (spell control tokens), `tokens`
    (of one epoch), `with_margin` (pairs), `fingerprint` (32 hex digits) of all tokens and margins, in order.
    """

    def __init__(
        self, records: Iterable[PreferenceRecord], tokenizer: RingTokenizer, config: PreferenceDataConfig, seed: int,
        max_positions: int, note: str = "",
    ) -> None:  # fmt: skip
        """Tokenize and plan. Raises `UserError` for what cannot be packed or tokenized; names its place in the file."""
        super().__init__(config.context_length, config.global_batch, seed)
        self.note = note
        self.pad_id = tokenizer.pad_id
        self.pairs: list[TokenPair] = []
        self.dropped = self.dropped_controls = count = 0
        overlong: list[tuple[str, str]] = []
        digest = hashlib.blake2b(digest_size=16)
        for count, record in enumerate(records, start=1):
            pair = _tokenized(record, tokenizer, config)
            if pair is None:
                self.dropped_controls += 1
            elif said := _too_long(pair, config.context_length, max_positions):
                overlong.append((record.place or f"pair {count}", said))
            else:
                for ids in (pair.chosen, pair.rejected):
                    digest.update(len(ids).to_bytes(8, "little") + array("i", ids).tobytes())
                digest.update(repr(pair.margin).encode())
                self.pairs.append(pair)
        self.dropped, self.fingerprint = len(overlong), digest.hexdigest()
        self._check(overlong, count, config.overlong)
        self._set_plan(plan_packs([pair.length for pair in self.pairs], self.capacity, self.seed))
        self.tokens = sum(pair.length for pair in self.pairs)
        self.subsets = Counter(pair.subset for pair in self.pairs)
        self.with_margin = sum(pair.margin != 0 for pair in self.pairs)

    def _micro_batch(self, items: Sequence[int], tokens: int) -> PreferenceBatch:
        return preference_batch([self.pairs[index] for index in items], tokens, self.pad_id)

    def _check(self, overlong: list[tuple[str, str]], count: int, on_overlong: str) -> None:
        if overlong and on_overlong == "error":
            first = "; ".join(f"{place}: {said}" for place, said in overlong[:OVERLONG_SHOWN])
            more = f"; and {len(overlong) - OVERLONG_SHOWN} more" if len(overlong) > OVERLONG_SHOWN else ""
            raise UserError(f"{first}{more}: raise --data.context-length, or leave them out with --data.overlong drop")
        if not self.pairs:
            raise UserError(
                f"no pair is left to train on ({len(overlong)} of {count} are too long, {self.dropped_controls} spell "
                f"control tokens): give more data, or raise --data.context-length"
            )


def _tokenized(record: PreferenceRecord, tokenizer: RingTokenizer, config: PreferenceDataConfig) -> TokenPair | None:
    """A record's tokens; None where it is to be left out. Raises `UserError` with its place."""
    keeps = config.control_tokens == "keep"
    try:
        chosen, rejected = (conversation_tokens(side, tokenizer, keeps) for side in (record.chosen, record.rejected))
    except UserError as error:
        if isinstance(error, ControlTokenError) and config.control_tokens == "drop":
            return None
        raise UserError(f"{record.place}: {error}" if record.place else str(error)) from None
    margin = {"none": None, "column": record.margin, "strength": record.strength}[config.margin]
    scaled = 0.0 if margin is None else config.margin_scale * margin
    # Arrays, not lists: 4 bytes a token instead of 36.
    return TokenPair(array("i", chosen[0]), array("i", rejected[0]), chosen[1], rejected[1], scaled, record.subset)


def _too_long(pair: TokenPair, capacity: int, max_positions: int) -> str:
    """What is too long of a pair; empty where nothing is."""
    if pair.length > capacity:
        return f"the pair has {len(pair.chosen):,} + {len(pair.rejected):,} tokens, more than {capacity:,} together"
    longest = max(len(pair.chosen), len(pair.rejected))
    return f"{longest:,} tokens, the model has {max_positions:,} positions" if longest > max_positions else ""
