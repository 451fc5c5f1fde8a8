"""A small tokenizer, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_ring.data.tokenizer import RingTokenizer, train_bpe
from megatron_ring.toy.problems import Splits, make_splits


@pytest.fixture(scope="session")
def splits() -> Splits:
    return make_splits(0, train=600, validation=40, heldout=40, rl=40)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory, splits: Splits) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "made/here"
    train_bpe([text for problem in splits.train for text in (problem.prompt, problem.response)], 512, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> RingTokenizer:
    return RingTokenizer.load(tokenizer_dir)
