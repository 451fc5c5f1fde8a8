#!/usr/bin/env python
"""Draw the data of one seed from a pool that tools/make_worked_gym_data.py or tools/choose_tasks.py wrote.

    python tools/draw_worked_gym_data.py --pool chosen --seed 1 --out runs/study-gpu/data

For machines without reasoning-gym, and for studies that choose their tasks by measuring. Splits stay disjoint, as they are
in the pool. Seeds draw their own rows, so two seeds share some. Where the pool has fewer rows than asked for, all are taken.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config.checks import require
from megatron_ring.config.cli import parse
from megatron_ring.data.files import read_prompts, read_sft, write_prompts, write_sft
from megatron_ring.errors import run_main

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """What to draw."""

    pool: Path
    """Folder with sft_train, sft_validation, rl_prompts and heldout (.jsonl)."""
    out: Path
    """Folder to write to; made if missing."""
    seed: int = 1
    """Seed of every draw."""
    train: int = 4_000
    """SFT training problems, at most."""
    validation: int = 200
    """SFT validation problems, at most."""
    rl: int = 4_000
    """RL prompts, at most."""
    heldout: int = 400
    """Evaluation prompts, at most."""
    parts: tuple[str, ...] = ()
    """NAME=TASK,TASK: also write the RL prompts of some tasks as rl_prompts_NAME.jsonl, for training in stages. Tasks that
    the pool lacks are passed over."""
    repeated: int = 0
    """Also write the first so many SFT conversations as sft_repeated.jsonl, for training until they are known by heart."""

    def __post_init__(self) -> None:
        same = self.out.resolve() == self.pool.resolve()
        require(not same, f"--out {self.out}: is --pool, whose other rows would be lost, give another folder")
        for name in ("train", "validation", "rl", "heldout"):
            require(getattr(self, name) >= 1, f"--{name} is {getattr(self, name)}, below 1")
        require(0 <= self.repeated <= self.train, f"--repeated {self.repeated}: give 0 to --train ({self.train})")
        for text in self.parts:
            name, sign, tasks = text.partition("=")
            require(name.isidentifier() and bool(sign and tasks), f"--parts {text}: write NAME=TASK,TASK")


def drawn(rows: Sequence[Row], count: int, seed: int, name: str) -> list[Row]:
    """`count` different rows, or all of fewer, in an order of the seed's."""
    return random.Random(f"{seed}/{name}").sample(rows, min(count, len(rows)))


def main(options: DrawOptions) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    said = []
    for name, count in (("sft_train", options.train), ("sft_validation", options.validation)):
        conversations = drawn(read_sft(options.pool / f"{name}.jsonl"), count, options.seed, name)
        write_sft(options.out / f"{name}.jsonl", conversations)
        said.append(f"{len(conversations)} {name}")
        if name == "sft_train" and options.repeated:
            write_sft(options.out / "sft_repeated.jsonl", conversations[: options.repeated])
    for name, count in (("rl_prompts", options.rl), ("heldout", options.heldout)):
        prompts = drawn(read_prompts(options.pool / f"{name}.jsonl"), count, options.seed, name)
        write_prompts(options.out / f"{name}.jsonl", prompts)
        said.append(f"{len(prompts)} {name}")
        for part, _, tasks in (text.partition("=") for text in options.parts if name == "rl_prompts"):
            rows = [row for row in prompts if row.metadata.get("task") in tasks.split(",")]
            require(bool(rows), f"--parts {part}={tasks}: no RL prompt of these tasks in {options.pool}")
            write_prompts(options.out / f"rl_prompts_{part}.jsonl", rows)
    print(f"{options.out}: {', '.join(said)}")


if __name__ == "__main__":
    run_main(lambda: main(parse(DrawOptions, "tools/draw_worked_gym_data.py", (__doc__ or "").split("\n")[0], sys.argv[1:])))
