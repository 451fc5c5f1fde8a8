#!/usr/bin/env python
"""Speed of tools/prepare_corpus.py beside megatron-core's usual recipe. Prints one JSON object.

    python tools/bench_corpus.py --mb 50 --workers 2
    python tools/bench_corpus.py --mb 20 --memory-gb 2

The recipe calls the tokenizer for each document through multiprocessing.Pool.imap, and IndexedDatasetBuilder for each
document. Both get the same JSON lines, tokenizer and number of processes, in turn; the outputs must be equal, byte for byte.
The text is the sources of this Python's own modules, cut into documents. --memory-gb also prepares a file of that size, made
of the same text with numbers in between, and reports the memory of all processes in its first tenth and at its peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError, run_main


def main() -> None:
    """Make the input, time both, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="tokenizer (default: a BPE of --vocab-size, trained here)"
    )
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the tokenizer that is trained (default: 8192)")
    parser.add_argument("--mb", type=float, default=20.0, help="size of the input (MB; default: 20)")
    parser.add_argument("--document-bytes", type=int, default=2000, help="size of a document, about (default: 2000)")
    parser.add_argument("--workers", type=int, default=2, help="processes that tokenise (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument(
        "--memory-gb", type=float, default=0.0, help="size of the input whose memory is measured (default: none)"
    )
    flags = parser.parse_args()
    if min(flags.mb, flags.document_bytes, flags.workers, flags.repeats) <= 0:
        raise UserError("--mb, --document-bytes, --workers and --repeats must be positive")
    from megatron_ring.data.bpe import train_bpe

    with tempfile.TemporaryDirectory(prefix="bench-corpus-") as folder:
        work = Path(folder)
        documents = _write_input(work / "texts.jsonl", flags.mb * 1e6, flags.document_bytes)
        tokenizer = flags.tokenizer
        if tokenizer is None:
            tokenizer = work / "tokenizer"
            texts = (text for _, text in zip(range(2000), _texts(flags.document_bytes), strict=False))
            train_bpe(texts, flags.vocab_size, tokenizer)
        seconds: dict[str, list[float]] = {"ring": [], "recipe": []}
        for _ in range(flags.repeats):
            for name, timed in (("recipe", _recipe), ("ring", _ring)):
                began = time.perf_counter()
                timed(work / "texts.jsonl", tokenizer, work / name, flags.workers)
                seconds[name].append(time.perf_counter() - began)
        equal = all(
            (work / f"ring.{kind}").read_bytes() == (work / f"recipe.{kind}").read_bytes() for kind in ("bin", "idx")
        )
        rates = {name: documents / statistics.median(times) for name, times in seconds.items()}
        result: dict[str, Any] = {
            "documents": documents, "mb": flags.mb, "workers": flags.workers, "outputs_equal": equal,
            "documents_per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "seconds": {name: [round(value, 2) for value in times] for name, times in seconds.items()},
            "ratio": round(rates["ring"] / rates["recipe"], 3),
        }  # fmt: skip
        if flags.memory_gb > 0:
            _write_input(work / "large.jsonl", flags.memory_gb * 1e9, flags.document_bytes)
            result["memory_mb"] = _memory(work / "large.jsonl", tokenizer, work / "large", flags.workers)
    print(json.dumps(result))


def _texts(size: int) -> Iterator[str]:
    """Documents of about `size` bytes, again and again, each with a number of its own."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    count = 0
    while True:
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace")
            for first in range(0, len(text), size):
                count += 1
                yield f"{count}\n{text[first : first + size]}"


def _write_input(path: Path, size: float, document_bytes: int) -> int:
    """JSON lines of `size` bytes; how many."""
    written = count = 0
    with path.open("w", encoding="utf-8") as stream:
        for text in _texts(document_bytes):
            written += stream.write(json.dumps({"text": text}) + "\n")
            count += 1
            if written >= size:
                return count
    return count


def _ring(source: Path, tokenizer: Path, out: Path, workers: int) -> None:
    from megatron_ring.corpus.preparing import PrepareOptions, prepare_corpus
    from megatron_ring.data.tokenizer import RingTokenizer

    prepare_corpus([source], RingTokenizer.load(tokenizer), out, PrepareOptions(workers=workers), overwrite=True)


class _Encoder:
    """What each process of the recipe holds."""

    tokenizer: Any = None

    @classmethod
    def start(cls, tokenizer: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        cls.tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tokenizer))

    @classmethod
    def encode(cls, line: str) -> list[int]:
        ids: list[int] = cls.tokenizer.encode(json.loads(line)["text"], add_special_tokens=False, split_special_tokens=True)
        ids.append(cls.tokenizer.eos_token_id)
        return ids


def _recipe(source: Path, tokenizer: Path, out: Path, workers: int) -> None:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    from megatron_ring.data.tokenizer import RingTokenizer

    vocab_size = RingTokenizer.load(tokenizer).vocab_size
    builder = IndexedDatasetBuilder(f"{out}.bin", dtype=DType.optimal_dtype(vocab_size))
    context = multiprocessing.get_context("fork")
    with source.open(encoding="utf-8") as stream, context.Pool(workers, _Encoder.start, (tokenizer,)) as pool:
        for ids in pool.imap(_Encoder.encode, stream, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{out}.idx")


def _memory(source: Path, tokenizer: Path, out: Path, workers: int) -> dict[str, float]:
    """MB of the tool's processes together (proportional share of what they share), sampled: while the first tenth of the
    input is read, and the most of all."""
    tool = Path(__file__).with_name("prepare_corpus.py")
    command = [sys.executable, str(tool), "--input", str(source), "--tokenizer", str(tokenizer), "--out", str(out),
               "--workers", str(workers)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples: list[float] = []
    while process.poll() is None:
        samples.append(_share(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise UserError(f"{tool.name} ended with status {process.returncode}")
    return {"first_tenth": round(max(samples[: max(1, len(samples) // 10)]), 1), "peak": round(max(samples), 1)}


def _share(parent: int) -> float:
    """Proportional set size of a process and its children (MB)."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (parent, *children)]
    except OSError:  # one has just ended
        return 0.0
    return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")) / 1000


if __name__ == "__main__":
    run_main(main)
