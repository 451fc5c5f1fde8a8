"""A small tokenizer, and documents that are awkward in every way a corpus can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_ring.data.tokenizer import RingTokenizer, train_bpe

TEXTS = [
    *(f"Document {number}: {'the quick brown fox ' * (number % 17)}\nends." for number in range(300)),
    " two  spaces\t and\r\n line ends \n", "naïve Ω 中文 😀", "\x00\x01 control", "<|endoftext|> in the text",
    "a", "\u2028\u2029", "\n",
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 400, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir: Path) -> RingTokenizer:
    return RingTokenizer.load(tokenizer_dir)


@pytest.fixture(scope="session")
def jsonl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(TEXTS)))
    return path
