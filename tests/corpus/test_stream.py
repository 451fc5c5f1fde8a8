"""What is read, in which order: against a plain reimplementation; documents that are reset; ranks, batches, places."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ring.config.micro_batches import packs_of_micro_batches
from megatron_ring.config.pretrain import CorpusConfig
from megatron_ring.corpus.blends import Place
from megatron_ring.corpus.mixing import open_corpora
from megatron_ring.corpus.stream import CorpusStream, Sizes, one_each
from megatron_ring.data.packing import MicroBatch
from megatron_ring.errors import UserError
from tests.corpus.writing import random_documents, write_corpus

LENGTH, SEED, SPLIT = 32, 3, (80.0, 20.0, 0.0)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return (
        write_corpus(folder / "one", random_documents(60, seed=1)),
        write_corpus(folder / "two", random_documents(25, seed=2), np.uint16),
    )


def config_of(corpora: tuple[Path, ...], weights: tuple[float, ...] = (2.0, 1.0), **more: Any) -> CorpusConfig:
    train = tuple(f"{path}:{weight}" for path, weight in zip(corpora, weights, strict=True))
    given = {"global_batch": 6, "sequence_length": LENGTH, "split": SPLIT} | more
    return CorpusConfig(train=train, tokenizer=Path("t"), **given)


def stream_of(config: CorpusConfig, part: int = 0, parts: int = 1, sizes: Sizes = one_each) -> CorpusStream:
    tokenizer: Any = SimpleNamespace(vocab_size=500, pad_id=0, vocabulary_fingerprint="")
    corpora = open_corpora(config, tokenizer)
    blend = corpora.blend(config.sequence_length, one_epoch=False)
    return CorpusStream(corpora, config, blend, tokenizer, SEED, None, part, parts, sizes)


def plain_epoch(documents: list[list[int]], epoch: int) -> list[list[int]]:
    """One epoch of sequences of LENGTH + 1 tokens: shuffle the documents, lay them end to end, cut, shuffle."""
    random = np.random.RandomState(SEED + 1_000_003 * epoch)
    order = np.arange(len(documents))
    random.shuffle(order)
    text = [token for index in order for token in documents[index]]
    pieces = [text[at : at + LENGTH + 1] for at in range(0, len(text) - LENGTH, LENGTH)]
    places = np.arange(len(pieces))
    random.shuffle(places)
    return [pieces[place] for place in places]


def plain_order(count: int) -> list[list[int]]:
    """The same of two corpora, two thirds of the first: whichever lags more comes next."""
    documents = [random_documents(60, seed=1)[:48], random_documents(25, seed=2)[:20]]
    epochs = [[text for epoch in range(9) for text in plain_epoch(part, epoch)] for part in documents]
    counts, found = [0, 0], []
    for number in range(count):
        behind = [share * max(number, 1) - done for share, done in zip((2 / 3, 1 / 3), counts, strict=True)]
        source = behind.index(max(behind))
        found.append(epochs[source][counts[source]])
        counts[source] += 1
    return found


def texts(batches: list[MicroBatch]) -> list[list[int]]:
    return [[*batch.tokens.tolist(), int(batch.targets[-1])] for batch in batches]


def test_the_order_equals_a_plain_reimplementation(corpora: tuple[Path, Path]) -> None:
    stream, found = stream_of(config_of(corpora)), []
    for _ in range(40):
        found += texts(stream.next())
    assert found == plain_order(240)
    assert all(epochs > 2 for epochs in stream.epochs().values())
    for batch in stream.next():
        assert torch.equal(batch.targets[:-1], batch.tokens[1:]) and bool(batch.loss_mask.all())
        assert batch.cu_seqlens.tolist() == [0, LENGTH] and torch.equal(batch.positions, torch.arange(LENGTH))


def test_documents_are_reset(corpora: tuple[Path, Path]) -> None:
    """Documents end with 0, so that their borders can be seen."""
    crossing, reset = stream_of(config_of(corpora)), stream_of(config_of(corpora, reset_at_document=True))
    masked = 0
    for _ in range(10):
        for plain, batch in zip(crossing.next(), reset.next(), strict=True):
            assert torch.equal(plain.tokens, batch.tokens) and torch.equal(plain.targets, batch.targets)
            ends = plain.tokens == 0  # what follows is of another document
            assert torch.equal(batch.loss_mask, ~ends)
            starts = [0, *[place + 1 for place in ends.nonzero()[:, 0].tolist() if place + 1 < LENGTH], LENGTH]
            assert batch.cu_seqlens.tolist() == starts
            expected = [at - max(s for s in starts if s <= at) for at in range(LENGTH)]
            assert batch.positions.tolist() == expected
            masked += int(ends.sum())
    assert masked > 20


def segments(batches: list[MicroBatch]) -> list[list[int]]:
    """Tokens, positions and what counts of each segment."""
    found = []
    for batch in batches:
        for start, end in pairwise(batch.cu_seqlens.tolist()):
            parts = (batch.tokens, batch.targets, batch.positions, batch.loss_mask, batch.token_mask)
            found.append([int(value) for part in parts for value in part[start:end]])
    return found


@pytest.mark.parametrize("reset", [False, True])
def test_sequences_go_together(corpora: tuple[Path, Path], reset: bool) -> None:
    config = config_of(corpora, reset_at_document=reset)
    single, several = stream_of(config), stream_of(config, sizes=lambda count: packs_of_micro_batches(count, 4, False))
    for _ in range(5):
        batches = several.next()
        assert [batch.tokens.numel() for batch in batches] == [3 * LENGTH, 3 * LENGTH]
        assert segments(batches) == segments(single.next())


def test_ranks_share_a_batch_and_any_number_of_them_reads_the_same(corpora: tuple[Path, Path]) -> None:
    alone, two = stream_of(config_of(corpora)), [stream_of(config_of(corpora), part, 2) for part in range(2)]
    for _ in range(5):
        shared = [texts(stream.next()) for stream in two]
        assert texts(alone.next()) == [text for pair in zip(*shared, strict=True) for text in pair]


def test_another_batch_another_number_of_ranks_and_another_blend_read_each_sequence_once(
    corpora: tuple[Path, Path],
) -> None:
    """Counted over one epoch of both corpora: two ranks, then one with another batch, then another blend."""
    seen: Counter[tuple[int, ...]] = Counter()
    two = [stream_of(config_of(corpora), part, 2) for part in range(2)]
    for _ in range(3):
        seen.update(tuple(text) for stream in two for text in texts(stream.next()))
    place = Place.from_json(two[0].place.to_json())
    one = stream_of(config_of(corpora, global_batch=4))
    one.seek(place)
    for _ in range(3):
        seen.update(map(tuple, texts(one.next())))
    other = stream_of(config_of(corpora, weights=(1.0, 5.0), global_batch=5))
    other.seek(one.place)
    for _ in range(2):
        seen.update(map(tuple, texts(other.next())))
    read = dict(other.place.read)
    parts = [random_documents(60, seed=1)[:48], random_documents(25, seed=2)[:20]]
    wanted = Counter(
        tuple(text) for source, part in zip(other.sources, parts, strict=True)
        for text in (plain_epoch(part, 0) + plain_epoch(part, 1))[: read[source.source.key]]
    )  # fmt: skip
    assert seen == wanted and other.place.samples == sum(read.values()) == 18 + 12 + 10


def test_what_is_read_ahead_does_not_count(corpora: tuple[Path, Path]) -> None:
    ahead, other = stream_of(config_of(corpora)), stream_of(config_of(corpora))
    for _ in range(3):
        ahead.next()
        other.next(more=False)
    assert ahead.place == other.place
    last = ahead.place
    following = texts(ahead.next())
    other.seek(dataclasses.replace(last))
    assert texts(other.next(more=False)) == following


def test_the_end_of_the_epochs_is_filled_up(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text(f"sources: [{{prefix: {corpora[1]}, epochs: 1}}]")
    config = dataclasses.replace(config_of(corpora), train=(str(path),))
    stream, real = stream_of(config), 0
    per_epoch = stream.sources[0].per_epoch
    for _ in range(-(-per_epoch // 6)):
        batches = stream.next()
        assert len(batches) == 6
        real += sum(bool(batch.token_mask.all()) for batch in batches)
    assert real == per_epoch == stream.place.samples and stream.blend.left(stream.place) == 0


def test_corpora_that_cannot_be_read(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are no sequence of 4,096 and one more"):
        stream_of(config_of(corpora, sequence_length=4096))
    write_corpus(tmp_path / "copy", random_documents(60, seed=1))
    with pytest.raises(UserError, match="hold the same; give it once"):
        stream_of(config_of((corpora[0], tmp_path / "copy")))
    with pytest.raises(UserError, match="it would measure what was trained on"):
        stream_of(config_of(corpora, validation=(str(tmp_path / "copy"),)))
