#!/usr/bin/env python
"""Tokenise conversations before a run needs them, so that `megatron_ring.sft` starts at once.

    python tools/prepare_sft.py --input sft.jsonl val.jsonl --tokenizer Ring-lite-SFT/

A run does the same by itself where it has not been done. This needs no GPU. Settings that decide the tokens
(--chat-template, --fields, --train-on, --control-tokens) must be those of the run. The same command continues work that was
interrupted.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.config.data import Columns
from megatron_ring.errors import UserError, run_main, say


@dataclass(frozen=True, kw_only=True)
class Prepare(Columns):
    """What is tokenised, and how."""

    input: tuple[Path, ...]
    """SFT files, as --data.train and --data.validation take them."""
    tokenizer: Path
    """Tokenizer directory in Hugging Face layout, or a sentencepiece .model file."""
    chat_template: Path | None = None
    """File of the chat template in Jinja, in place of the tokenizer's own."""
    train_on: Literal["all", "last", "marked"] = "all"
    """Which of the assistant's messages carry loss, as --data.train-on."""
    control_tokens: Literal["error", "drop", "keep"] = "error"
    """What becomes of conversations whose texts spell a control token, as --data.control-tokens."""
    cache: Path | None = None
    """Folder for the tokenised conversations, as --data.cache (default: `.tokenized` beside each file)."""
    workers: int | None = None
    """Processes that tokenise (default: one for each core; none beside this for a small file)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.input), "--input: give a file")
        require(self.workers is None or self.workers >= 1, f"--workers is {self.workers}, below 1")


def main(config: Prepare) -> None:
    from megatron_ring.corpus.token_cache import cache_folders, open_store
    from megatron_ring.corpus.tokenizing import TokenizingJob
    from megatron_ring.data.fields import SFT_FIELDS, Fields
    from megatron_ring.data.tokenizer import RingTokenizer

    tokenizer, fields = RingTokenizer.load(config.tokenizer, config.chat_template), Fields.of(config, SFT_FIELDS, "--fields")
    for path in config.input:
        began = time.perf_counter()
        job = TokenizingJob(path, fields, tokenizer, config.train_on, config.control_tokens)
        try:
            folders = cache_folders(config.cache, path, None)
            store = open_store(job, folders, functools.partial(say, "prepare"), workers=config.workers)
        except UserError as error:
            mended = str(error).replace("--data.", "--")
            raise UserError(mended if str(path) in mended else f"{path}: {mended}") from None
        left_out = f", {len(store.left_out):,} with control tokens left out" if len(store.left_out) else ""
        tokens = int(store.lengths.sum(dtype="int64"))
        if store.manifest.remark:
            say("prepare", f"{path}: {store.manifest.remark}")
        seconds = time.perf_counter() - began
        say(
            "prepare",
            f"{path}: {len(store):,} conversations{left_out}, {tokens:,} tokens, in {seconds:.1f} s: {store.folder}",
        )


if __name__ == "__main__":
    run_main(lambda: main(parse(Prepare, "prepare_sft.py", "Tokenise conversations before a run needs them.")))
