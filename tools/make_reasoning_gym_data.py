"""Write a prompt file of reasoning-gym tasks (pip install reasoning-gym), judged by our verifiers and never by its own.

Tasks get equal shares and alternate. No two prompts have the same text. The same flags and the same version of the package
give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config import cli
from megatron_ring.data.files import PromptRecord
from megatron_ring.data.records import prompt_from_json
from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards.logic.reasoning_gym import TASKS, convert
from tools.drawn_prompts import check_output, write_drawn

MAX_DUPLICATES = 200  # in a row, before a task counts as used up


@dataclass(frozen=True)
class GymDataOptions:
    """What to write.

    Attributes:
        out: file to write, .jsonl or .parquet; it appears whole or not at all.
        tasks: names separated by commas, or "all" that can be judged strictly.
        count: prompts in all.
        seed: seed of every draw.
    """

    out: Path
    tasks: str = "all"
    count: int = 1000
    seed: int = 1


def tasks_of(tasks: str) -> list[str]:
    """The tasks of the flag. Raises `UserError` for one that cannot be judged, or comes twice."""
    names = list(TASKS) if tasks == "all" else [name.strip() for name in tasks.split(",")]
    for name in names:
        if name not in TASKS:
            raise UserError(f"--tasks: unknown task {name!r}: use some of {','.join(TASKS)}, or all")
    if len(set(names)) < len(names):
        raise UserError(f"--tasks {tasks}: name each task once")
    return names


def item_seed(seed: int, task: str, number: int) -> int:
    """The package's seed of an item. Hashed: item i of seed s is item 0 of seed s + i there, so neighbouring seeds would
    overlap."""
    text = f"{seed}/{task}/{number}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def draw(options: GymDataOptions, gym: Any) -> Iterator[PromptRecord]:
    """Distinct problems, one at a time. Raises `UserError` for a task that is used up."""
    names = tasks_of(options.tasks)
    seen: set[str] = set()
    attempts = dict.fromkeys(names, 0)
    for number in range(options.count):
        name = names[number % len(names)]
        for _ in range(MAX_DUPLICATES):
            seed = item_seed(options.seed, name, attempts[name])
            attempts[name] += 1
            record = prompt_from_json(convert(name, gym.create_dataset(name, size=1, seed=seed)[0]))
            if record.messages[0].content not in seen:
                break
        else:
            raise UserError(f"{name} has too few different problems ({number // len(names)} drawn): lower --count")
        seen.add(record.messages[0].content)
        yield record


def main() -> None:
    """Command line."""
    options = cli.parse(GymDataOptions, "make_reasoning_gym_data.py", __doc__ or "")
    check_output(options.out, options.count)
    tasks_of(options.tasks)
    if os.environ.get("PYTHONHASHSEED") != "0":  # some tasks draw from sets, whose order would change from run to run
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    try:
        gym = importlib.import_module("reasoning_gym")
    except ImportError:
        raise UserError("reasoning-gym is not installed: pip install reasoning-gym") from None
    print(write_drawn(options.out, options.count, draw(options, gym)))


if __name__ == "__main__":
    run_main(main)
