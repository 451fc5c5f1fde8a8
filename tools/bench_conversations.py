#!/usr/bin/env python
"""Start and memory of SFT over many conversations. Prints one JSON object.

    python tools/bench_conversations.py --conversations 200000 --ranks 4

Makes a file of so many conversations, then opens it as a run does: once with nothing tokenised, then again in --ranks
processes together, each of which goes on to read --steps steps. Reported are the seconds of each start, and the memory of
each rank (MB): before it opens the file, once it is open, and at the end, of the whole process and of what is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from megatron_ring.errors import UserError, run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--conversations", type=int, default=200_000, help="in the file (default: 200000)")
    add("--words", type=int, default=60, help="of an answer, on average (default: 60)")
    add("--context-length", type=int, default=8192, help="tokens of a pack (default: 8192)")
    add("--ranks", type=int, default=2, help="processes that open the file together (default: 2)")
    add("--steps", type=int, default=200, help="steps of one pack that each of them reads (default: 200)")
    flags = parser.parse_args()
    if min(flags.conversations, flags.words, flags.context_length, flags.ranks, flags.steps) < 1:
        raise UserError("--conversations, --words, --context-length, --ranks and --steps must be positive")
    from megatron_ring.data.bpe import train_bpe

    with tempfile.TemporaryDirectory(prefix="bench-conversations-") as folder:
        work = Path(folder)
        texts = _write(work / "sft.jsonl", flags.conversations, flags.words)
        train_bpe(texts, 4096, work / "tokenizer")
        first = _apart(work, flags.context_length, 0, 1)
        again = _apart(work, flags.context_length, flags.steps, flags.ranks)
        size = sum(path.stat().st_size for path in (work / ".tokenized").rglob("*") if path.is_file())
        mb = {"file": (work / "sft.jsonl").stat().st_size / 1e6, "tokenized": size / 1e6}
    print(json.dumps({"conversations": flags.conversations, "mb": mb, "first_start": first, "second_start": again}))


def _write(path: Path, count: int, words: int) -> list[str]:
    """The file, and some of its texts."""
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    texts = []
    with path.open("w") as stream:
        for number in range(count):
            length = max(1, int(rng.expovariate(1 / words)))
            answer = " ".join(rng.choices(known, k=length))
            stream.write(json.dumps({"prompt": f"Question {number}: {rng.choice(known)}?", "response": answer}) + "\n")
            if number < 2000:
                texts.append(answer)
    return texts


def _apart(work: Path, context: int, steps: int, ranks: int) -> list[dict[str, Any]]:
    """What each of so many processes measures."""
    spawn = multiprocessing.get_context("spawn")
    results: Any = spawn.Queue()
    processes = [spawn.Process(target=_open, args=(work, context, steps, results)) for _ in range(ranks)]
    for process in processes:
        process.start()
    found = [results.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    return found


def _open(work: Path, context: int, steps: int, results: Any) -> None:
    from megatron_ring.config.sft import SFTDataConfig
    from megatron_ring.corpus.conversations import load_datasets
    from megatron_ring.data.tokenizer import RingTokenizer

    tokenizer = RingTokenizer.load(work / "tokenizer")
    tokenizer.prompt_tokens("1+1?")
    before, began = _memory(), time.perf_counter()
    given = SFTDataConfig(train=work / "sft.jsonl", tokenizer=work, context_length=context, global_batch=1, overlong="drop")
    data, _ = load_datasets(given, tokenizer, 0, context, work / "run", _quiet)
    seconds, opened = time.perf_counter() - began, _memory()
    for step in range(min(steps, data.steps_per_epoch)):
        data.batch(0, step)
    said = {"seconds": round(seconds, 2), "tokens": data.tokens, "packs": data.packs}
    results.put({**said, "before": before, "open": opened, "read": _memory()})


def _quiet(line: str) -> None:
    """Nobody reads it."""


def _memory() -> dict[str, float]:
    """MB: of this process, at its peak so far, and what is its own (`anon`) rather than of mapped files."""
    found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    names = {"rss": "VmRSS", "peak": "VmHWM", "anon": "RssAnon"}
    return {name: round(int(found[key].split()[0]) / 1024, 1) for name, key in names.items()}


if __name__ == "__main__":
    run_main(main)
