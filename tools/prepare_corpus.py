#!/usr/bin/env python
"""Turn text into a tokenised corpus for pretraining: PREFIX.bin and PREFIX.idx in megatron-core's indexed form.

    python tools/prepare_corpus.py --input part1.jsonl.gz texts/ --tokenizer my-tokenizer --out corpus/books
    python tools/prepare_corpus.py --verify corpus/books

Input is JSONL, JSON, parquet or plain text, each text file one document unless --separator cuts it; folders are searched.
Every document ends with the tokenizer's end-of-text token. The same command continues work that was interrupted, and ends
with the same bytes. PREFIX.manifest.json says what is in the corpus. PREFIX.idx appears last: with it the corpus is whole.
"""

from __future__ import annotations

import argparse
import codecs
import os
from pathlib import Path

from megatron_ring.corpus.sources import ROW_SUFFIXES, TEXT_SUFFIXES, list_sources
from megatron_ring.errors import UserError, run_main


def main() -> None:
    """Parse the flags, list the input, prepare, and say what came of it."""
    flags = _parse()
    if flags.verify is not None:
        from megatron_ring.corpus.opening import verify_corpus

        print(f"{verify_corpus(flags.verify).note}: whole, checksums agree")
        return
    prefix = flags.out.with_name(flags.out.stem) if flags.out.suffix in (".bin", ".idx") else flags.out
    if not prefix.name or prefix.is_dir():
        raise UserError(f"--out {flags.out}: a folder; give the beginning of file names, such as {prefix / 'corpus'}")
    suffixes = tuple(f".{suffix.lower().lstrip('.')}" for suffix in flags.suffixes)
    sources, passed = list_sources(flags.input, suffixes, prefix)
    if passed:
        print(f"{passed:,} files of other suffixes are left out (--suffixes)")
    from megatron_ring.corpus.preparing import PrepareOptions, prepare_corpus
    from megatron_ring.data.tokenizer import RingTokenizer
    from megatron_ring.run.progress import Progress

    options = PrepareOptions(
        field=flags.field, separator=flags.separator, control_tokens=flags.control_tokens, bad_rows=flags.bad_rows,
        max_document_bytes=int(flags.max_document_mb * 1e6), workers=flags.workers,
        save_every=int(flags.save_every_mb * 1e6),
    )  # fmt: skip
    tokenizer = RingTokenizer.load(flags.tokenizer)
    with Progress("prepare", sum(path.stat().st_size for path in sources), unit="byte") as progress:
        manifest = prepare_corpus(
            sources, tokenizer, prefix, options, flags.restart, flags.overwrite,
            lambda read, documents: progress.update(read, f"{documents:,} documents"),
        )  # fmt: skip
    left = "".join(f", {count:,} {reason.replace('_', ' ')} left out" for reason, count in manifest.left_out.items())
    print(f"{prefix}: {manifest.documents:,} documents, {manifest.tokens:,} tokens ({manifest.dtype}){left}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    suffixes = (*ROW_SUFFIXES, *TEXT_SUFFIXES)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = parser.add_argument
    add("--input", type=Path, nargs="+", metavar="PATH", help="files and folders, read in this order")
    add("--tokenizer", type=Path, metavar="DIR", help="tokenizer folder, as --data.tokenizer takes it")
    add("--out", type=Path, metavar="PREFIX", help="where the corpus goes: PREFIX.bin, PREFIX.idx, PREFIX.manifest.json")
    add("--field", default="text", help="column of the text; dots go into objects (default: text)")
    add("--separator", type=_escaped, metavar="TEXT", help="between documents of a plain text file, as in '\\n\\n\\n' or "
        "'<|endoftext|>' (default: each file is one document)")  # fmt: skip
    add("--suffixes", nargs="+", default=suffixes, metavar="SUFFIX", help="of the files that are taken from folders, also "
        f"with .gz and .zst (default: {' '.join(suffixes)}); others than those of rows are plain text")  # fmt: skip
    add("--control-tokens", choices=("split", "keep", "drop", "error"), default="split",
        help="what a text that spells a control token, such as the end of a text, becomes: ordinary tokens of its letters "
        "(default), the control token, left out, or an error")  # fmt: skip
    add("--bad-rows", choices=("error", "drop"), default="error",
        help="rows that are malformed or lack the text: an error (default), or left out and counted")  # fmt: skip
    add("--max-document-mb", type=float, default=64.0, help="largest document (MB of text; default: 64)")
    add("--workers", type=int, default=cores, help=f"processes that tokenise (default: one for each core, {cores})")
    add(
        "--save-every-mb",
        type=float,
        default=64.0,
        help="MB of text between two states that work can go on from (default: 64)",
    )
    add("--restart", action="store_true", help="begin anew instead of continuing interrupted work")
    add("--overwrite", action="store_true", help="replace a corpus that is there")
    add("--verify", type=Path, metavar="PREFIX", help="only read a corpus whole and compare its checksums")
    flags = parser.parse_args()
    if flags.verify is None and not (flags.input and flags.tokenizer and flags.out):
        raise UserError("give --input, --tokenizer and --out (or --verify PREFIX)")
    for name, least in (("max_document_mb", 1e-6), ("workers", 1), ("save_every_mb", 1e-6)):
        value = getattr(flags, name)
        if not least <= value < 1e12:
            raise UserError(f"--{name.replace('_', '-')} is {value:g}: give {'at least 1' if least == 1 else 'more than 0'}")
    if flags.separator == "":
        raise UserError("--separator is empty: give the text between documents")
    return flags


def _escaped(text: str) -> str:
    r"""A text with \n, \t and the like as a shell passes them."""
    return codecs.escape_decode(text.encode())[0].decode()  # type: ignore[attr-defined]


if __name__ == "__main__":
    run_main(main)
