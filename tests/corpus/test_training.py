"""From corpora on disk to losses: the same curve in every layout, and a step that is left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_ring.config.optimizer import OptimizerConfig, RouterLossConfig
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import RING_TINY
from megatron_ring.config.pretrain import CorpusConfig
from tests.corpus.writing import learnable_documents, write_corpus
from tests.layouts import LAYOUTS

OPTIMIZER, STEPS = OptimizerConfig(lr=2e-3, warmup_steps=1), 14
TOKENIZER: Any = SimpleNamespace(vocab_size=RING_TINY.vocab_size, pad_id=0, vocabulary_fingerprint="")


def opened(parallel: ParallelConfig, folder: Path, reset: bool) -> tuple[Any, Any]:
    """A trainer and the stream of two corpora."""
    from megatron_ring.checkpoint.weights import initialize_weights
    from megatron_ring.corpus.mixing import open_corpora
    from megatron_ring.corpus.stream import CorpusStream
    from megatron_ring.model.ring_model import build_model
    from megatron_ring.parallel import context
    from megatron_ring.training.trainer import Trainer

    here = context.initialize(parallel, RING_TINY, seed=0)
    model = build_model(RING_TINY, here, RouterLossConfig(1e-2, 1e-3))
    initialize_weights(model, seed=2)
    config = CorpusConfig(
        train=(f"{folder}/one:2", f"{folder}/two:1"), tokenizer=Path("t"), split=(1, 0, 0), sequence_length=64,
        global_batch=4, reset_at_document=reset,
    )  # fmt: skip
    corpora = open_corpora(config, TOKENIZER)
    stream = CorpusStream(
        corpora, config, corpora.blend(64, False), TOKENIZER, 0, folder / "cache", here.data_rank, here.data_size
    )
    return Trainer(model, here, OPTIMIZER), stream


def curve(parallel: ParallelConfig, folder: Path) -> list[float]:
    from megatron_ring.training.losses import SFTLoss

    trainer, stream = opened(parallel, folder, reset=True)
    losses = []
    for step in range(STEPS):
        batches = stream.next(more=step + 1 < STEPS)
        losses.append(trainer.train_step(batches, SFTLoss(), OPTIMIZER.lr_at(step, STEPS)).mean("loss"))
    assert max(stream.epochs().values()) > 1  # the second epoch's index was made meanwhile
    return losses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "one", learnable_documents(20, seed=1))
    write_corpus(folder / "two", learnable_documents(10, seed=2))
    return folder


@pytest.mark.slow
@pytest.mark.distributed
def test_every_layout_has_the_same_curve(run_on, folder: Path) -> None:
    (alone,) = run_on(1, curve, ParallelConfig(), folder)
    assert alone[-1] < 0.97 * alone[0]
    for layout in ("dp2", "tp2", "ep2", "pp2"):
        processes, parallel = LAYOUTS[layout]
        for found in run_on(processes, curve, parallel, folder):
            assert found == pytest.approx(alone, rel=1e-4), layout


def left_out(folder: Path) -> None:
    from megatron_ring.training.losses import SFTLoss

    trainer, stream = opened(ParallelConfig(), folder, False)
    seen = []

    def refuse(result: Any) -> bool:
        seen.append(result)
        return False

    before = [parameter.clone() for parameter in trainer.model.parameters()]
    result = trainer.train_step(stream.next(), SFTLoss(), 1e-3, refuse)
    assert not result.updated and seen[0].mean("loss") == result.mean("loss") and seen[0].grad_norm == result.grad_norm > 0
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.train_step(stream.next(), SFTLoss(), 1e-3, lambda result: True).updated
    assert not torch.equal(before[0], next(trainer.model.parameters()))


def test_an_update_that_is_refused_changes_nothing(run_on, folder: Path) -> None:
    run_on(1, left_out, folder)
