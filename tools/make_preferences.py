#!/usr/bin/env python
"""Write planted preferences: each solution of an SFT file against the same with one flaw, named in `subset`.

    python tools/make_preferences.py --input sft_train.jsonl --out preferences.jsonl

A reward model that learns from them can be checked: which answer is better is known. The same flags give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_ring.data.files import read_sft
from megatron_ring.data.rows import write_rows
from megatron_ring.errors import UserError, run_main
from megatron_ring.toy.preferences import FLAWS, PLAIN, Solution, planted_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--input", type=Path, required=True, help="SFT file whose solutions end in \\boxed{…}")
    parser.add_argument("--out", type=Path, required=True, help="preference file to write, .jsonl or .parquet")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    which = f"of {', '.join(FLAWS)} (default: all but {FLAWS[-1]}, which is hard to see)"
    parser.add_argument("--flaws", nargs="+", default=list(PLAIN), metavar="FLAW", help=which)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    flags = parser.parse_args()
    if flags.dry_run and not flags.input.exists():
        print(f"dry run: planted preferences of {flags.input} -> {flags.out}\nnot checked: {flags.input}: not there")
        return
    solutions = []
    for record in read_sft(flags.input):
        if [message.role for message in record.messages] != ["user", "assistant"]:
            raise UserError(f"{record.place}: more than a question and its answer: give such rows alone")
        solutions.append(Solution(record.messages[0].content, record.messages[1].content))
    pairs = list(planted_pairs(solutions, flags.seed, flags.flaws))
    if flags.dry_run:
        print(f"dry run: {len(pairs):,} planted preferences of {flags.input} -> {flags.out}")
        return
    write_rows(
        flags.out,
        [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "subset": pair.flaw} for pair in pairs],
    )
    print(f"{flags.out}: {len(pairs):,} pairs with the flaws {', '.join(flags.flaws)}")


if __name__ == "__main__":
    run_main(main)
