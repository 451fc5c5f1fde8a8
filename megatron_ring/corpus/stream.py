"""The batches of a pretraining run: from a place in a blend of corpora to micro-batches, one step ahead of the training."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as ABCSequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from megatron_ring.config.pretrain import CorpusConfig
from megatron_ring.corpus.blends import Blend, Entry, Place
from megatron_ring.corpus.mixing import TRAINED, VALIDATED, Corpora
from megatron_ring.corpus.parts import Source
from megatron_ring.corpus.sequences import SourceSequences
from megatron_ring.data.packing import MicroBatch, empty_microbatch, together
from megatron_ring.data.tokenizer import RingTokenizer

Sizes = Callable[[int], list[int]]


def one_each(sequences: int) -> list[int]:
    """Sequences of each micro-batch, where they go through the model one by one."""
    return [1] * sequences


class CorpusStream:
    """The micro-batches of one rank, step by step.

    Attributes: `place`, behind the batch that was given out last; `names` and `sources` of the corpora, in order.
    """

    def __init__(
        self, corpora: Corpora, config: CorpusConfig, blend: Blend, tokenizer: RingTokenizer, seed: int,
        cache: Path | None = None, part: int = 0, parts: int = 1, sizes: Sizes = one_each,
    ) -> None:  # fmt: skip
        """`part` of `parts`: this rank's share of each batch, every `parts`-th sequence. `sizes`: how many of so many
        sequences go into each micro-batch."""
        self.config, self.blend, self.place = config, blend, Place()
        self.names = [entry.name for entry, _ in corpora.trained]
        self.sources = [
            SourceSequences(source, TRAINED, config.sequence_length, seed, tokenizer.vocab_size, cache)
            for _, source in corpora.trained
        ]
        self._pad_id, self._part, self._parts, self._sizes = tokenizer.pad_id, part, parts, sizes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="corpus")
        self._ahead: tuple[Place, Future[list[MicroBatch]]] | None = None

    def seek(self, place: Place) -> None:
        """Go on from another place."""
        self.place, self._ahead = place, None

    def next(self, more: bool = True) -> list[MicroBatch]:
        """This rank's micro-batches of the next step, on the host; where the corpora end, filled up with empty ones. All
        ranks call it together. `more`: read what comes next meanwhile.

        Raises:
            UserError: a corpus holds ids that the tokenizer has not.
        """
        place, reading = self._ahead or self._begin(self.place)
        self.place, self._ahead = place, None
        batches = reading.result()
        if more:
            self._ahead = self._begin(place)
        return batches

    def epochs(self) -> dict[str, float]:
        """Passes over each corpus so far."""
        read = self.place.read
        return {
            name: read.get(one.source.key, 0) / max(1, one.per_epoch)
            for name, one in zip(self.names, self.sources, strict=True)
        }

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _begin(self, place: Place) -> tuple[Place, Future[list[MicroBatch]]]:
        count = self.config.batch_at(place.samples)
        after, drawn = self.blend.draw(place, count)
        for number, one in enumerate(self.sources):
            numbers = [index for source, index in drawn if source == number]
            if numbers:
                one.open(min(numbers), max(numbers))
        return after, self._reader.submit(self._read, drawn, count)

    def _read(self, drawn: list[tuple[int, int]], count: int) -> list[MicroBatch]:
        found = [
            self.sources[source].read(number).micro_batch(self.config.reset_at_document)
            for source, number in drawn[self._part :: self._parts]
        ]
        missing = len(range(self._part, count, self._parts)) - len(found)
        found += [empty_microbatch(self.config.sequence_length, self._pad_id) for _ in range(missing)]
        return together(found, self._sizes(len(found)))


@dataclass(frozen=True)
class HeldOut:
    """Sequences of a corpus that are measured, always the same."""

    name: str
    sequences: SourceSequences
    count: int

    def batches(self, reset: bool, pad_id: int, part: int, parts: int, sizes: Sizes = one_each) -> list[MicroBatch]:
        """This rank's share, filled up so that all ranks have as many; `sizes` as of `CorpusStream`. All ranks call it
        together."""
        self.sequences.open(0, self.count - 1)
        mine = [self.sequences.read(number).micro_batch(reset) for number in range(part, self.count, parts)]
        missing = -(-self.count // parts) - len(mine)
        mine += [empty_microbatch(self.sequences.length, pad_id) for _ in range(missing)]
        return together(mine, sizes(len(mine)))


def held_out(
    corpora: Corpora, config: CorpusConfig, part: int, tokenizer: RingTokenizer, seed: int, most: int, cache: Path | None
) -> list[HeldOut]:
    """What is measured of each corpus: the part VALIDATED or TESTED of the trained ones, or the corpora of
    --data.validation. Corpora with too few tokens for one sequence are left out."""
    sources: ABCSequence[tuple[Entry, Source]] = corpora.trained
    if part == VALIDATED and corpora.validated:
        sources = corpora.validated
    found = []
    for entry, source in sources:
        one = SourceSequences(source, part, config.sequence_length, seed, tokenizer.vocab_size, cache)
        if one.per_epoch:
            found.append(HeldOut(entry.name, one, min(most, one.per_epoch)))
    return found
