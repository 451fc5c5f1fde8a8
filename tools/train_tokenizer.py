#!/usr/bin/env python
"""Train a small tokenizer (byte-level BPE) on SFT files and write it as a Hugging Face folder with a chat template.

    python tools/train_tokenizer.py --input sft.jsonl --out my-tokenizer

For a model that starts from random weights, such as `ring-tiny`. A published model keeps the tokenizer that it came with.
The same files and flags give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.files import read_sft
from megatron_ring.errors import run_main


def main() -> None:
    """Parse the flags, read the conversations, write the tokenizer, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help="SFT files (JSONL or parquet)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument(
        "--vocab-size", type=int, default=512, help="largest vocabulary (tokens; default: 512, that of ring-tiny)"
    )
    flags = parser.parse_args()
    texts = [message.content for path in flags.input for record in read_sft(path) for message in record.messages]
    size = train_bpe(texts, flags.vocab_size, flags.out)
    print(f"{flags.out}: tokenizer of {size} tokens from {len(texts)} messages")


if __name__ == "__main__":
    run_main(main)
