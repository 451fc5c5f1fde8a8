"""Write a prompt file of logic games (JSON lines, or parquet by its suffix) for reinforcement or evaluation.

Games and difficulties get equal shares and alternate. No two prompts have the same text, and none has the text of a prompt
in an --exclude file. The same flags give the same bytes; --count N gives the first N lines of a larger count.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.config import cli
from megatron_ring.data.files import PromptRecord, read_prompts
from megatron_ring.data.records import prompt_from_json
from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards.logic import GAMES
from tools.drawn_prompts import check_output, write_drawn

MAX_DUPLICATES = 500  # in a row, before a game counts as used up


@dataclass(frozen=True)
class LogicDataOptions:
    """What to write.

    Attributes:
        out: file to write, .jsonl or .parquet; it appears whole or not at all.
        games: names separated by commas, or "all".
        count: prompts in all.
        seed: seed of every draw.
        difficulty: one level, or a range such as 1-5 (5 is hardest).
        exclude: prompt files whose prompts must not appear, such as the evaluation set.
    """

    out: Path
    games: str = "all"
    count: int = 1000
    seed: int = 1
    difficulty: str = "1-5"
    exclude: tuple[Path, ...] = ()


def names_of(games: str) -> list[str]:
    """The games of the flag. Raises `UserError` for one that does not exist, or comes twice."""
    names = list(GAMES) if games == "all" else [name.strip() for name in games.split(",")]
    for name in names:
        if name not in GAMES:
            raise UserError(f"--games: unknown game {name!r}: use some of {','.join(GAMES)}, or all")
    if len(set(names)) < len(names):
        raise UserError(f"--games {games}: name each game once")
    return names


def levels_of(difficulty: str, names: list[str]) -> range:
    """The difficulties of the flag. Raises `UserError` for one that a game does not have."""
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", difficulty, re.ASCII)
    if match is None:
        raise UserError(f"--difficulty {difficulty}: write a level or a range, such as 3 or 1-5")
    levels = range(int(match[1]), int(match[2] or match[1]) + 1)
    for name in names:
        known = GAMES[name].difficulties
        if not levels or not set(levels) <= set(known):
            raise UserError(f"--difficulty {difficulty}: {name} has the levels {known[0]} to {known[-1]}")
    return levels


def excluded_texts(paths: tuple[Path, ...]) -> set[str]:
    """Texts of all prompts in some files; of a conversation, every user message. Raises `UserError`."""
    return {
        message.content
        for path in paths
        for record in read_prompts(path)
        for message in record.messages
        if message.role == "user"
    }


def draw(options: LogicDataOptions) -> Iterator[PromptRecord]:
    """Distinct problems, one at a time. Raises `UserError` for flags that cannot work, or a game that is used up."""
    names = names_of(options.games)
    kinds = [(name, level) for level in levels_of(options.difficulty, names) for name in names]
    seen = excluded_texts(options.exclude)
    attempts = dict.fromkeys(kinds, 0)
    for number in range(options.count):
        name, level = kinds[number % len(kinds)]
        for _ in range(MAX_DUPLICATES):
            # A seed of its own for every draw, hashed: draws of --seed 1 and --seed 2 must not overlap.
            text = f"{options.seed}/{name}/{level}/{attempts[name, level]}"
            attempts[name, level] += 1
            seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
            record = prompt_from_json(GAMES[name].generate(seed, level))
            if record.messages[0].content not in seen:
                break
        else:
            made = number // len(kinds)
            raise UserError(f"{name} has too few different problems at difficulty {level} ({made} drawn): lower --count")
        seen.add(record.messages[0].content)
        yield record


def main() -> None:
    """Command line."""
    options = cli.parse(LogicDataOptions, "make_logic_data.py", __doc__ or "")
    check_output(options.out, options.count)
    said = write_drawn(options.out, options.count, draw(options))
    print(f"{said}, difficulty {options.difficulty}")


if __name__ == "__main__":
    run_main(main)
