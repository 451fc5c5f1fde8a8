"""Near duplicates beside datasketch and datatrove, on the same texts in the same run, one process each.

The texts are GSM8K problems (`--data`), copies of them with a few words replaced, and the same problems with other numbers,
which are no copies. Brute force says which pairs are copies (`tools/check_duplicates.py`). One JSON object: for each
contender the share of those pairs of which one is dropped (recall), the share of the drops that are in such a pair
(precision), the share of problems with other numbers that stay, and rows per second. A rival that is not installed is null.
"""

from __future__ import annotations

import json
import random
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.cli import parse
from megatron_ring.curation.near import word_grams
from megatron_ring.curation.options import Near
from megatron_ring.curation.text import words
from megatron_ring.errors import UserError, run_main
from tools.check_duplicates import brute_pairs, ledger_of
from tools.planted_rows import math_rows, near_copy

BANDS, ROWS = 14, 8  # datatrove's, for both rivals


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is compared."""

    data: Path
    """gsm8k_train.jsonl as it is downloaded."""
    copies: int = 8000
    """Copies with one to three words replaced."""
    templates: int = 4500
    """Problems with other numbers."""
    seed: int = 1
    """Seed of every draw."""


def texts_of(options: BenchOptions) -> tuple[list[str], range]:
    """The texts, and the places of those with other numbers."""
    rng = random.Random(options.seed)
    originals = [row["problem"] for row in math_rows(options.data)]
    texts = list(originals)
    for _ in range(options.copies):
        text = rng.choice(originals)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = near_copy(text, rng)
        texts.append(text)
    first = len(texts)
    numbered = [text for text in originals if re.search(r"\d", text)]
    while len(texts) < first + options.templates:
        texts.append(re.sub(r"\d+", lambda _: str(rng.randint(2, 9999)), rng.choice(numbered)))
    return texts, range(first, len(texts))


def ours(texts: list[str]) -> set[int]:
    """The step `near`, from reading the file to writing what stays."""
    with tempfile.TemporaryDirectory() as name:
        dropped = ledger_of([{"problem": text, "answer": "1"} for text in texts], Near(), Path(name))
    return {int(number) - 1 for number in dropped}


def datasketch(texts: list[str]) -> set[int]:
    """MinHash of our word 5-grams and its index; a text goes where the estimated similarity to one that stays is 0.8."""
    from datasketch import MinHash, MinHashLSH

    index, dropped = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS)), set()
    signatures = []
    for number, text in enumerate(texts):
        signature = MinHash(num_perm=BANDS * ROWS)
        signature.update_batch([gram.encode() for gram in word_grams(words(text), Near.words)])
        signatures.append(signature)
        if any(signature.jaccard(signatures[other]) >= Near.threshold for other in index.query(signature)):
            dropped.add(number)
        else:
            index.insert(number, signature)
    return dropped


class _Words:
    """For datatrove, whose own English tokenizer needs spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def datatrove(texts: list[str], numbers: bool = False) -> set[int]:
    """Its three stages with their defaults: the bands alone decide. Without `numbers` all numbers are alike."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.text import TextNormConfig
    from loguru import logger

    logger.remove()
    minhash.load_word_tokenizer = lambda language: _Words()
    norm = TextNormConfig(norm_numbers=not numbers)
    config = minhash.MinhashConfig(num_buckets=BANDS, hashes_per_bucket=ROWS, norm_config=norm)
    with tempfile.TemporaryDirectory() as name:
        signatures, pairs, removed = (str(Path(name) / part) for part in ("signatures", "pairs", "removed"))
        documents = (Document(text=text, id=str(number)) for number, text in enumerate(texts))
        minhash.MinhashDedupSignature(signatures, config).run(documents)
        for bucket in range(BANDS):
            minhash.MinhashDedupBuckets(signatures, pairs, config=config).run(None, bucket, BANDS)
        minhash.MinhashDedupCluster(pairs, removed, config=config).run(None)
        data = (Path(removed) / "000000.remove").read_bytes()
    return {number for (number,) in struct.iter_unpack("<I", data)}


def datatrove_with_numbers(texts: list[str]) -> set[int]:
    """`datatrove` with numbers as they are."""
    return datatrove(texts, numbers=True)


def measured(run: Callable[[list[str]], set[int]], texts: list[str], templates: range, pairs: set[tuple[int, int]]) -> Any:
    """A contender's figures; None where it is not installed."""
    started = time.monotonic()
    try:
        dropped = run(texts)
    except ImportError as error:
        print(f"{run.__name__}: {error}", file=sys.stderr)
        return None
    seconds = time.monotonic() - started
    copies = {member for pair in pairs for member in pair}
    lost = sum(number in dropped and number not in copies for number in templates)
    return {
        "dropped": len(dropped),
        "recall": round(sum(one in dropped or other in dropped for one, other in pairs) / len(pairs), 4),
        "precision": round(len(dropped & copies) / max(1, len(dropped)), 4),
        "other_numbers_kept": round(1 - lost / len(templates), 4),
        "rows_per_second": round(len(texts) / seconds),
    }


def main() -> None:
    """Command line."""
    options = parse(BenchOptions, "tools/bench_duplicates.py", __doc__ or "")
    if not options.data.is_file():
        raise UserError(f"--data {options.data}: no such file: give gsm8k_train.jsonl")
    if min(options.copies, options.templates) < 1:
        raise UserError("--copies, --templates: give 1 at least")
    texts, templates = texts_of(options)
    pairs = brute_pairs(texts, Near.threshold)
    result: dict[str, Any] = {"texts": len(texts), "pairs": len(pairs), "threshold": Near.threshold}
    for run in (ours, datasketch, datatrove, datatrove_with_numbers):
        result[run.__name__] = measured(run, texts, templates, pairs)
    print(json.dumps(result))


if __name__ == "__main__":
    run_main(main)
