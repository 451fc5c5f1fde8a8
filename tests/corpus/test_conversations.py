"""Epochs of packed conversations from disk: those of a plain reading in memory, every token once an epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from array import array
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.sft import SFTDataConfig
from megatron_ring.corpus.conversations import SFTDataset, load_datasets
from megatron_ring.data.files import read_sft, write_sft
from megatron_ring.data.packing import MicroBatch, pack_sequences, plan_packs
from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.sequences import TokenSequence
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.toy.problems import make_splits


@pytest.fixture(scope="module")
def records() -> list[SFTRecord]:
    made = [
        SFTRecord((Message("user", problem.prompt), Message("assistant", problem.response)), problem.domain)
        for problem in make_splits(0, train=300, validation=40, heldout=40, rl=40).train
    ]
    several = [
        SFTRecord((*a.messages, *b.messages), marks=(None, mark, None, True))
        for (a, b), mark in zip(itertools.pairwise(made[:40]), itertools.cycle((None, False)), strict=False)
    ]
    return [*made, *several]


def config(path: Path, **more: Any) -> SFTDataConfig:
    given = {"context_length": 160, "global_batch": 8, **more}
    return SFTDataConfig(train=path, tokenizer=path, **given)


def opened(
    folder: Path, records: list[SFTRecord], tokenizer: RingTokenizer, seed: int = 5, positions: int = 512, **more: Any
) -> SFTDataset:
    """What a run makes of these conversations."""
    path = folder / "data" / "c.jsonl"
    if records or not path.exists():
        write_sft(path, records)
    return load_datasets(config(path, **more), tokenizer, seed, positions, folder / "run")[0]


@pytest.fixture(scope="module")
def dataset(records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path_factory: pytest.TempPathFactory) -> SFTDataset:
    return opened(tmp_path_factory.mktemp("set"), records, tokenizer)


def same(a: list[MicroBatch], b: list[MicroBatch]) -> bool:
    names = [field.name for field in dataclasses.fields(MicroBatch)]
    return len(a) == len(b) and all(
        torch.equal(getattr(x, name), getattr(y, name)) for x, y in zip(a, b, strict=True) for name in names
    )


class InMemory:
    """The same written down plainly, with everything in memory."""

    def __init__(self, path: Path, tokenizer: RingTokenizer, given: SFTDataConfig, seed: int) -> None:
        self.sequences, digest = [], hashlib.blake2b(digest_size=16)
        for record in read_sft(path):
            found = tokenizer.training_tokens(record, train_on=given.train_on)
            if len(found.tokens) <= given.context_length:
                self.sequences.append(found)
                ids, mask = array("i", found.tokens), array("b", found.loss_mask)
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + mask.tobytes())
        self.given, self.fingerprint, self.tokenizer = given, digest.hexdigest(), tokenizer
        self.packs = plan_packs([len(one.tokens) for one in self.sequences], given.context_length, seed)
        self.loss_tokens = sum(sum(one.loss_mask[1:]) for one in self.sequences)

    def micro_batch(self, pack: int | None) -> MicroBatch:
        items = [] if pack is None else self.packs[pack]
        found = [TokenSequence(list(self.sequences[i].tokens), list(self.sequences[i].loss_mask)) for i in items]
        return pack_sequences(found, self.given.context_length, self.tokenizer.pad_id)


@pytest.mark.parametrize(
    "more", [{}, {"train_on": "last"}, {"train_on": "marked"}, {"context_length": 80, "overlong": "drop"}], ids=str
)
def test_they_are_those_of_a_reading_in_memory(
    more: dict[str, Any], records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path: Path
) -> None:
    import random

    given = records[300:] if more.get("train_on") == "marked" else records
    for _ in ("made", "mapped"):
        data = opened(tmp_path, given, tokenizer, **more)
        path = tmp_path / "data/c.jsonl"
        plain = InMemory(path, tokenizer, config(path, **more), 5)
        assert (data.fingerprint, data.loss_tokens) == (plain.fingerprint, plain.loss_tokens)
        assert (data.sequences, data.packs) == (len(plain.sequences), len(plain.packs))
        assert data.tokens == sum(len(one.tokens) for one in plain.sequences)
        assert data.dropped == len(given) - len(plain.sequences)
        for epoch in (0, 1):
            order: list[int | None] = list(range(len(plain.packs)))
            random.Random(f"5/{epoch}").shuffle(order)
            order += [None] * (-len(order) % 8)
            found = [batch for step in range(data.steps_per_epoch) for batch in data.batch(epoch, step)]
            assert same(found, [plain.micro_batch(pack) for pack in order])


def conversations(batches: list[MicroBatch]) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        for start, end in itertools.pairwise(bounds):
            if batch.token_mask[start]:
                found[tuple(batch.tokens[start:end].tolist())] += 1
    return found


def test_an_epoch_holds_every_conversation_once(
    dataset: SFTDataset, records: list[SFTRecord], tokenizer: RingTokenizer
) -> None:
    expected = Counter(tuple(tokenizer.training_tokens(record).tokens) for record in records)
    for epoch in (0, 1):
        batches = [batch for step in range(dataset.steps_per_epoch) for batch in dataset.batch(epoch, step)]
        assert len(batches) == dataset.steps_per_epoch * 8
        assert conversations(batches) == expected
        assert sum(int(batch.loss_mask.sum()) for batch in batches) == dataset.loss_tokens
        assert sum(int(batch.token_mask.sum()) for batch in batches) == dataset.tokens
        empty = [not batch.token_mask.any() for batch in batches]
        assert sum(empty) == len(batches) - dataset.packs < 8
        assert not any(empty[: dataset.packs]), "only the end of an epoch is filled"
    assert (dataset.sequences, dataset.dropped) == (len(records), 0)
    assert dataset.tokens / (dataset.packs * 160) > 0.9


def test_batches_depend_on_nothing_but_their_arguments(
    dataset: SFTDataset, records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path: Path
) -> None:
    late = dataset.batch(3, 2)
    dataset.batch(0, 0)
    assert same(late, opened(tmp_path, records, tokenizer).batch(3, 2)) and same(late, dataset.batch(3, 2))
    assert not same(late, dataset.batch(2, 2))
    assert not same(late, opened(tmp_path, records, tokenizer, seed=6).batch(3, 2))


def test_ranks_share_a_step(dataset: SFTDataset) -> None:
    last = dataset.steps_per_epoch - 1
    whole = dataset.batch(1, last)
    shares = [dataset.batch(1, last, part, 4) for part in range(4)]
    assert same(whole, [shares[place % 4][place // 4] for place in range(8)])
    with pytest.raises(UserError, match="choose a multiple of 3"):
        dataset.batch(0, 0, 0, 3)
    with pytest.raises(ValueError, match="no batch for epoch 0"):
        dataset.batch(0, dataset.steps_per_epoch)


def test_overlong_conversations(records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path: Path) -> None:
    long = SFTRecord((Message("user", "1" * 200), Message("assistant", "2")))
    bad = SFTRecord((Message("user", "q"), Message("assistant", "a<|endoftext|>b")))
    mixed = [records[0], bad, bad, long, *records[1:10], bad]
    with pytest.raises(
        UserError, match=r"c\.jsonl: 1 of 14 con.* longer than 160 tokens \(the longest has 2..; records 4\)"
    ):
        opened(tmp_path, mixed, tokenizer, control_tokens="drop")
    kept = opened(tmp_path, [], tokenizer, control_tokens="drop", overlong="drop")
    assert (kept.sequences, kept.dropped, kept.dropped_controls) == (10, 1, 3)
    with pytest.raises(UserError, match=r"no conversation is left.*\(1 of 1 are longer than 160 tokens, 0 spell control"):
        opened(tmp_path, [long], tokenizer, overlong="drop")
    with pytest.raises(UserError, match=r"no conversation is left.*2 of 2 spell control tokens"):
        opened(tmp_path, [bad, bad], tokenizer, control_tokens="drop")
    (tmp_path / "data/c.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"c\.jsonl: the file holds no records"):
        opened(tmp_path, [], tokenizer)


def test_control_tokens_and_positions(records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path: Path) -> None:
    bad = SFTRecord((Message("user", "q"), Message("assistant", "a<|endoftext|>b")))
    with pytest.raises(UserError, match=r"c\.jsonl:6: the assistant's text spells the control token"):
        opened(tmp_path, [*records[:5], bad], tokenizer)
    assert opened(tmp_path, [], tokenizer, control_tokens="keep").sequences == 6
    longest = max(len(tokenizer.training_tokens(record).tokens) for record in records)
    opened(tmp_path, records, tokenizer, positions=longest)
    with pytest.raises(UserError, match="the model has no more positions"):
        opened(tmp_path, records, tokenizer, positions=longest - 1)


def test_the_fingerprint_is_of_what_is_trained(
    dataset: SFTDataset, records: list[SFTRecord], tokenizer: RingTokenizer, tmp_path: Path
) -> None:
    moved = [replace(record, domain="elsewhere", source="moved") for record in records]
    assert opened(tmp_path, moved, tokenizer, seed=6, global_batch=4).fingerprint == dataset.fingerprint
    assert opened(tmp_path, records[::-1], tokenizer).fingerprint != dataset.fingerprint
