"""Epochs of packed conversations: every token once an epoch, no state but (epoch, step)."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from megatron_ring.data.packing import MicroBatch
from megatron_ring.data.records import Message, SFTRecord
from megatron_ring.data.sft_data import SFTDataset
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from megatron_ring.toy.problems import Splits


@pytest.fixture(scope="module")
def records(splits: Splits) -> list[SFTRecord]:
    return [
        SFTRecord((Message("user", problem.prompt), Message("assistant", problem.response)), problem.domain)
        for problem in splits.train
    ]


@pytest.fixture(scope="module")
def dataset(records: list[SFTRecord], tokenizer: RingTokenizer) -> SFTDataset:
    return SFTDataset(records, tokenizer, capacity=128, global_batch=8, seed=5)


def same(a: list[MicroBatch], b: list[MicroBatch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.tokens, y.tokens) and torch.equal(x.cu_seqlens, y.cu_seqlens) for x, y in zip(a, b, strict=True)
    )


def conversations(batches: list[MicroBatch]) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        bounds = batch.cu_seqlens.tolist()
        for start, end in itertools.pairwise(bounds):
            if batch.token_mask[start]:
                found[tuple(batch.tokens[start:end].tolist())] += 1
    return found


def test_an_epoch_holds_every_conversation_once(dataset, records, tokenizer) -> None:
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
    assert dataset.tokens / (dataset.packs * 128) > 0.9


def test_loss_covers_the_response_and_its_eos(dataset, records, tokenizer) -> None:
    learnt = sum(len(tokenizer.encode(record.messages[-1].content)) + 1 for record in records)
    assert dataset.loss_tokens == learnt


def test_batches_depend_on_nothing_but_their_arguments(dataset, records, tokenizer) -> None:
    late = dataset.batch(3, 2)
    dataset.batch(0, 0)
    again = SFTDataset(records, tokenizer, 128, 8, 5)
    assert same(late, again.batch(3, 2)) and same(late, dataset.batch(3, 2))
    assert not same(late, dataset.batch(2, 2))
    assert not same(late, SFTDataset(records, tokenizer, 128, 8, 6).batch(3, 2))


def test_ranks_share_a_step(dataset) -> None:
    last = dataset.steps_per_epoch - 1
    whole = dataset.batch(1, last)
    shares = [dataset.batch(1, last, part, 4) for part in range(4)]
    assert same(whole, [shares[place % 4][place // 4] for place in range(8)])
    with pytest.raises(UserError, match="choose a multiple of 3"):
        dataset.batch(0, 0, 0, 3)
    with pytest.raises(ValueError, match="no batch for epoch 0"):
        dataset.batch(0, dataset.steps_per_epoch)


def test_overlong_conversations(records, tokenizer) -> None:
    long = SFTRecord((Message("user", "1" * 200), Message("assistant", "2")))
    mixed = [records[0], long, *records[1:10]]
    with pytest.raises(UserError, match=r"1 of 11 conversations are longer than 128 tokens \(the longest has 208; rec.* 2"):
        SFTDataset(mixed, tokenizer, 128, 2, 0)
    kept = SFTDataset(mixed, tokenizer, 128, 2, 0, on_overlong="drop")
    assert (kept.sequences, kept.dropped) == (10, 1)
    with pytest.raises(UserError, match="no conversation is left"):
        SFTDataset([long], tokenizer, 128, 2, 0, on_overlong="drop")
    with pytest.raises(UserError, match="no conversation is left"):
        SFTDataset([], tokenizer, 128, 2, 0)
    with pytest.raises(UserError, match="use 'error' or 'drop'"):
        SFTDataset(records, tokenizer, 128, 2, 0, on_overlong="cut")
    with pytest.raises(UserError, match="at least 2 tokens"):
        SFTDataset(records, tokenizer, 1, 2, 0)


def test_control_tokens_and_positions(records, tokenizer) -> None:
    bad = SFTRecord((Message("user", "q"), Message("assistant", "a<|endoftext|>b")), place="f.jsonl:7")
    mixed = [*records[:5], bad]
    with pytest.raises(UserError, match=r"^f\.jsonl:7: the assistant's text spells the control token"):
        SFTDataset(mixed, tokenizer, 128, 2, 0)
    dropped = SFTDataset(mixed, tokenizer, 128, 2, 0, control_tokens="drop")
    assert (dropped.sequences, dropped.dropped_controls) == (5, 1)
    assert SFTDataset(mixed, tokenizer, 128, 2, 0, control_tokens="keep").sequences == 6
    longest = max(len(tokenizer.training_tokens(record).tokens) for record in records)
    SFTDataset(records, tokenizer, 128, 2, 0, max_positions=longest)
    with pytest.raises(UserError, match="the model has no more positions"):
        SFTDataset(records, tokenizer, 128, 2, 0, max_positions=longest - 1)


def test_the_fingerprint_is_of_what_is_trained(records, tokenizer) -> None:
    same_content = [SFTRecord(record.messages, "elsewhere", "moved", place="x:1") for record in records]
    first = SFTDataset(records, tokenizer, 128, 8, 5).fingerprint
    assert SFTDataset(same_content, tokenizer, 64, 4, 6).fingerprint == first
    assert SFTDataset(records[::-1], tokenizer, 128, 8, 5).fingerprint != first
    multi = SFTRecord((*records[0].messages, *records[1].messages))
    whole = SFTDataset([multi], tokenizer, 256, 1, 0).fingerprint
    assert SFTDataset([multi], tokenizer, 256, 1, 0, train_on="last").fingerprint != whole
