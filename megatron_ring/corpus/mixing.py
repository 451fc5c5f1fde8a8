"""The corpora that a configuration names: checked, counted, and mixed. Loads neither torch nor megatron."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_ring.config.checks import require
from megatron_ring.config.pretrain import CorpusConfig
from megatron_ring.corpus.blends import Blend, Entry, Place, Share, read_blend
from megatron_ring.corpus.opening import open_corpus
from megatron_ring.corpus.parts import Source, divide
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError

TRAINED, VALIDATED, TESTED = 0, 1, 2
"""Parts of a corpus."""


@dataclass(frozen=True)
class Corpora:
    """What a run reads, checked: the trained corpora with their entries in the blend, and those that are only measured."""

    trained: tuple[tuple[Entry, Source], ...]
    validated: tuple[tuple[Entry, Source], ...]

    def blend(self, length: int, one_epoch: bool) -> Blend:
        """How the trained corpora are mixed, in sequences of `length` tokens. `one_epoch`: corpora without weights and
        without epochs end after one."""
        shares = []
        for entry, source in self.trained:
            per_epoch = max(0, source.part_tokens[TRAINED] - 1) // length
            ends = one_epoch and entry.weight is None
            epochs = entry.epochs if entry.epochs is not None else 1.0 if ends else None
            limit = None if epochs is None else max(1, round(epochs * per_epoch))
            weight = entry.weight
            if weight is None:
                weight = float(per_epoch if limit is None else limit)
            if weight > 0 and not per_epoch:
                raise UserError(
                    f"--data.train {entry.prefix}: {source.part_tokens[TRAINED]:,} trained tokens "
                    f"({source.documents:,} documents) are no sequence of {length:,} and one more: shorten "
                    f"--data.sequence-length, or leave it out"
                )
            shares.append(Share(source.key, weight, limit))
        return Blend(shares)


def open_corpora(config: CorpusConfig, tokenizer: RingTokenizer) -> Corpora:
    """Check all corpora of a configuration. Raises `UserError` naming what is wrong."""

    def opened(entry: Entry, split: tuple[float, float, float]) -> tuple[Entry, Source]:
        try:
            corpus = open_corpus(entry.prefix, tokenizer.vocabulary_fingerprint, tokenizer.vocab_size)
            return entry, divide(corpus, split)
        except OSError as error:
            raise UserError(f"{error.filename or entry.prefix}: cannot be read: {error.strerror}") from None

    shares = config.split if not config.validation else (config.split[0], 0.0, config.split[2])
    validation = read_blend(config.validation, "--data.validation") if config.validation else []
    trained = [opened(entry, shares) for entry in read_blend(config.train)]
    validated = [opened(entry, (0.0, 1.0, 0.0)) for entry in validation]
    for flag, sources in (("--data.train", trained), ("--data.validation", validated)):
        seen: dict[str, Entry] = {}
        for entry, source in sources:
            other = seen.setdefault(source.key, entry)
            require(other is entry, f"{flag}: {other.prefix} and {entry.prefix} hold the same; give it once, with a weight")
    twice = {source.key for _, source in trained} & {source.key for _, source in validated}
    require(not twice, "--data.validation: a corpus is also in --data.train; it would measure what was trained on")
    return Corpora(tuple(trained), tuple(validated))


def steps_left(blend: Blend, place: Place, config: CorpusConfig) -> int | None:
    """Steps from a place on until every corpus has come to its limit; None where one has none."""
    left, steps, samples = blend.left(place), 0, place.samples
    if left is None:
        return None
    while left > 0 and config.ramp.samples is not None and samples < config.ramp.samples:
        batch = config.batch_at(samples)
        steps, samples, left = steps + 1, samples + batch, left - batch
    return steps + max(0, -(-left // config.global_batch))
