#!/usr/bin/env python
"""Write real text that every Python installation has, for pretraining in small: its manual and its library's sources.

    python tools/make_text_data.py --out text

Writes manual.jsonl and sources.jsonl, one document a line under "text", and a tokenizer of this text and of SFT files. The
same installation gives the same bytes. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.files import read_sft
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__", "lib2to3"}
TOKENIZER_CHARACTERS = 2_000_000


def main() -> None:
    """Parse the flags, write the files, and say what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; made if missing")
    parser.add_argument("--megabytes", type=float, default=8.0, help="most text of the sources (MB; default: 8)")
    parser.add_argument("--sft", type=Path, nargs="*", default=[], metavar="FILE", help="SFT files, also for the tokenizer")
    parser.add_argument("--vocab-size", type=int, default=512, help="tokens of the tokenizer (default: 512, ring-tiny's)")
    flags = parser.parse_args()
    if not flags.megabytes > 0:
        raise UserError(f"--megabytes {flags.megabytes}: give a positive number")
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = dict(_sources(library, int(flags.megabytes * 1e6)))
    manual = dict(_manual(library, sources))
    for name, texts in (("manual", manual), ("sources", sources)):
        if not texts:
            raise UserError(f"{library}: this Python installation has no {name}")
        lines = [json.dumps({"text": text, "source": source}) + "\n" for source, text in texts.items()]
        write_atomically(flags.out / f"{name}.jsonl", "".join(lines).encode())
    conversations = [message.content for path in flags.sft for record in read_sft(path) for message in record.messages]
    learnt = [*_some([*manual.values(), *sources.values()]), *conversations]
    size = train_bpe(learnt, flags.vocab_size, flags.out / "tokenizer")
    counted = f"{len(manual)} documents of the manual, {len(sources)} of the sources"
    print(f"{flags.out}: {counted}; tokenizer of {size} tokens")


def _sources(library: Path, most: int) -> Iterator[tuple[str, str]]:
    """Name and text of the library's modules, shuffled, until `most` characters."""
    paths = [path for path in library.rglob("*.py") if not LEFT_OUT & set(path.relative_to(library).parts)]
    names = sorted(str(path.relative_to(library)) for path in paths)
    random.Random(0).shuffle(names)
    found = 0
    for name in names:
        try:
            text = (library / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if text.strip() and found < most:
            found += len(text)
            yield name, text


def _manual(library: Path, sources: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The language reference that `help()` shows, and the documentation of the modules."""
    topics = library / "pydoc_data" / "topics.py"
    if topics.is_file():
        for node in ast.walk(ast.parse(topics.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                for key, text in ast.literal_eval(node).items():
                    yield f"topic {key}", text
                break
    for name, text in sources.items():
        try:
            tree = ast.parse(text)
        except SyntaxError:
            continue
        holders = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        parts = [docstring for node in holders if (docstring := ast.get_docstring(node))]
        if parts:
            yield name, "\n\n".join(parts)


def _some(texts: list[str]) -> Iterator[str]:
    """Texts until there are enough for a tokenizer."""
    random.Random(1).shuffle(texts)
    found = 0
    for text in texts:
        if found < TOKENIZER_CHARACTERS:
            found += len(text)
            yield text


if __name__ == "__main__":
    run_main(main)
