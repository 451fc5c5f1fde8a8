#!/usr/bin/env python
"""Add small general tasks to the data of the tiny runs: SFT files, preferences, prompts with and without a replay share.

    python tools/make_general_data.py --data runs/tiny-seed1/data

`--data` is a folder of `tools/make_tiny_data.py`. Its files stay; new ones are named `general_…`, and so is a tokenizer of
both kinds of text. The same flags give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence, Set
from pathlib import Path

from megatron_ring.data.bpe import train_bpe
from megatron_ring.data.files import PromptRecord, SFTRecord, read_prompts, read_sft, write_prompts, write_sft
from megatron_ring.data.records import Message
from megatron_ring.data.rows import write_rows
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, run_main
from megatron_ring.toy.general import KINDS, GeneralTask, draw_tasks, preference, split

# Of every hundred tasks: there are few different lists to ask for.
SHARES = {"open": 45, "answer": 45, "rules": 10}


def main() -> None:
    flags = _parse_flags()
    if min(flags.train, flags.rl, flags.heldout, flags.pairs) < 10 or not 0 < flags.replay < 1:
        raise UserError("--train, --rl, --heldout and --pairs: ask for at least 10 each; --replay lies between 0 and 1")
    if flags.dry_run:
        print(f"dry run: general tasks beside {flags.data}: {flags.train} SFT, {flags.pairs} pairs, {flags.rl} prompts")
        return
    out, rng = flags.data, random.Random(f"{flags.seed}/general")
    train, rl, heldout = _splits(flags.seed, (flags.train, flags.rl, flags.heldout))
    reasoning = {name: read_sft(out / f"sft_{name}.jsonl") for name in ("train", "validation")}
    own = [_sft(task, task.careless(rng)) for task in train]
    rows = [*reasoning["train"], *own]
    rng.shuffle(rows)
    write_sft(out / "general_sft_train.jsonl", rows)
    best = [_sft(task, task.best) for task in [*train, *rl] if task.kind != "open"]
    # General SFT: right answers where rules tell, and as many worked problems, so that reasoning is not unlearnt.
    worked = [row for row in reasoning["train"] if "\n" in row.messages[-1].content]
    last = [*best, *rng.sample(worked, min(len(best), len(worked)))]
    rng.shuffle(last)
    write_sft(out / "general_sft_last.jsonl", last)
    _write_preferences(out, flags.seed, (flags.pairs, max(10, flags.pairs // 8)), {task.prompt for task in heldout})
    write_prompts(out / "general_prompts.jsonl", [_prompt(task) for task in rl])
    asked = [_prompt(task, task.careless(rng)) for task in heldout]
    write_prompts(out / "general_heldout.jsonl", asked)
    write_prompts(out / "general_heldout_all.jsonl", [*read_prompts(out / "heldout.jsonl"), *asked])
    _write_stages(out, flags.reasoning, flags.replay)
    texts = [message.content for row in rows for message in row.messages]
    vocabulary = train_bpe(texts, flags.vocab_size, out / "general_tokenizer")
    print(
        f"{out}: {len(own)} SFT conversations beside {len(reasoning['train'])} of reasoning, {flags.pairs} preferences, "
        f"{len(rl)} prompts, {len(heldout)} held out; tokenizer of {vocabulary} tokens"
    )


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, default=argparse.SUPPRESS, help="folder of make_tiny_data.py")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw")
    parser.add_argument("--train", type=int, default=1000, help="SFT conversations of general tasks")
    parser.add_argument("--rl", type=int, default=600, help="prompts of general RL")
    parser.add_argument("--heldout", type=int, default=400, help="held-out tasks")
    parser.add_argument("--pairs", type=int, default=2000, help="preferences")
    parser.add_argument("--replay", type=float, default=0.5, help="share of reasoning among the prompts of general RL")
    parser.add_argument("--reasoning", default="rl_prompts.jsonl", help="prompt file of the replay, looked for in --data")
    parser.add_argument("--vocab-size", type=int, default=512, help="largest tokenizer vocabulary (tokens)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    return parser.parse_args()


def _splits(seed: int, sizes: Sequence[int]) -> list[list[GeneralTask]]:
    """Tasks for SFT, RL and holding out, all kinds in each; prompts of RL and SFT are never held out."""
    parts: list[list[GeneralTask]] = [[] for _ in sizes]
    for kind in KINDS:
        counts = [max(1, size * SHARES[kind] // 100) for size in sizes]
        for part, found in zip(parts, split(draw_tasks(seed, kind, sum(counts)), counts), strict=True):
            part += found
    for number, part in enumerate(parts):
        random.Random(f"{seed}/general/{number}").shuffle(part)
    return parts


def _sft(task: GeneralTask, response: str) -> SFTRecord:
    return SFTRecord((Message("user", task.prompt), Message("assistant", response)), "general", task.kind)


def _prompt(task: GeneralTask, opponent: str | None = None) -> PromptRecord:
    """A row; `opponent` is a teacher's answer that a held-out response is compared with."""
    judged = {} if opponent is None else {"best": task.best, "opponent": opponent}
    return PromptRecord(task.id, task.domain, task.prompt, task.answer, {"family": task.kind, **judged})


def _write_preferences(out: Path, seed: int, sizes: Sequence[int], without: Set[str]) -> None:
    """Pairs for training and validation; none is about a held-out prompt, and the two share none. Their number changes no
    other file."""
    rng = random.Random(f"{seed}/general/preferences")
    tasks = [task for task in draw_tasks(seed + 7, "open", sum(sizes) + len(without)) if task.prompt not in without]
    for name, part in zip(("train", "validation"), split(tasks, sizes), strict=True):
        pairs = [(task.prompt, *found) for task in part if (found := preference(task, rng)) is not None]
        rows = [{"prompt": prompt, "chosen": good, "rejected": bad, "subset": "open"} for prompt, good, bad in pairs]
        write_rows(out / f"general_preferences_{name}.jsonl", rows)


def _write_stages(out: Path, reasoning: str, replay: float) -> None:
    """Two stage files of general RL: with a replay share of reasoning, and without."""
    general = [
        {"file": "general_prompts.jsonl", "domain": "reward-model", "weight": 0.5},
        {"file": "general_prompts.jsonl", "domain": "qa/exact", "weight": 0.3},
        {"file": "general_prompts.jsonl", "domain": "instructions", "weight": 0.2},
    ]
    mixed = [{"file": reasoning, "weight": replay}]
    mixed += [{**part, "weight": round(part["weight"] * (1 - replay), 6)} for part in general]  # type: ignore[operator]
    for name, parts in (("replay", mixed), ("alone", general)):
        text = json.dumps({"stages": [{"prompts": parts}]}, indent=1) + "\n"
        write_atomically(out / f"general_{name}.json", text.encode())


if __name__ == "__main__":
    run_main(main)
