#!/usr/bin/env python
"""Train a small tokenizer and write it as a Hugging Face folder with a chat template.

    python tools/train_tokenizer.py --input sft.jsonl --out my-tokenizer
    python tools/train_tokenizer.py --input texts.jsonl --field text --kind unigram --vocab-size 8000 --out my-tokenizer

For a model that starts from random weights, such as `ring-tiny`. A published model keeps the tokenizer that it came with.
Input is SFT files or, with --field, text for pretraining as tools/prepare_corpus.py takes it. --kind byte-bpe is a
byte-level BPE of the tokenizers library; bpe and unigram are sentencepiece's, with bytes for what has no piece. The same
files and flags give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.files import read_sft
from megatron_ring.data.sentencepiece_model import train_model
from megatron_ring.errors import UserError, run_main


def main() -> None:
    """Parse the flags, read the texts, write the tokenizer, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, metavar="FILE", help="SFT files; with --field also text and folders")
    add("--field", help="column of the text, where the input is text for pretraining (default: SFT files)")
    add("--max-mb", type=float, default=500.0, help="MB of text that are read with --field, from the start (default: 500)")
    add("--kind", choices=("byte-bpe", "bpe", "unigram"), default="byte-bpe",
        help="byte-level BPE, or sentencepiece's BPE or unigram model (default: byte-bpe)")  # fmt: skip
    add("--out", type=Path, required=True, help="folder to write to; made if missing")
    add("--vocab-size", type=int, default=512, help="largest vocabulary (tokens; default: 512, that of ring-tiny)")
    flags = parser.parse_args()
    if not 0 < flags.max_mb < 1e9:
        raise UserError(f"--max-mb is {flags.max_mb:g}: give more than 0")
    if flags.field is None:
        texts = [message.content for path in flags.input for record in read_sft(path) for message in record.messages]
    else:
        texts = list(_plain_texts(flags.input, flags.field, flags.max_mb * 1e6))
    if flags.kind == "byte-bpe":
        size = train_bpe(texts, flags.vocab_size, flags.out)
    else:
        size = train_model(texts, flags.kind, flags.vocab_size, flags.out)
    print(f"{flags.out}: tokenizer of {size} tokens from {len(texts)} {'messages' if flags.field is None else 'texts'}")


def _plain_texts(inputs: list[Path], field: str, most: float) -> Iterator[str]:
    """Texts of files and folders, up to `most` bytes of them."""
    from megatron_ring.corpus.encoding import texts_of
    from megatron_ring.corpus.sources import ROW_SUFFIXES, TEXT_SUFFIXES, Position, ReadOptions, list_sources, read_chunks

    options = ReadOptions(field, None, 64_000_000)
    sources, _ = list_sources(inputs, (*ROW_SUFFIXES, *TEXT_SUFFIXES), None)
    for path in sources:
        for chunk in read_chunks(path, Position(), options):
            for text in texts_of(chunk, field):
                yield text
                most -= len(text.encode())
                if most <= 0:
                    return


if __name__ == "__main__":
    run_main(main)
