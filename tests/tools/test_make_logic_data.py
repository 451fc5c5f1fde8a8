"""The prompt files of logic games: they read back, verify, repeat byte by byte, and leave out what is excluded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.files import read_prompts
from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import ScoreRequest
from megatron_ring.rewards.logic import GAMES
from tools import make_logic_data

ROOT = Path(__file__).parents[2]


def run(*flags: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/make_logic_data.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_file_that_training_reads(tmp_path: Path) -> None:
    flags = ["--games", "countdown,knights,maze", "--difficulty", "1-2", "--seed", "4"]
    done = run("--out", tmp_path / "a/train.jsonl", "--count", 61, *flags)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "61 prompts of logic/countdown, logic/knights, logic/maze" in done.stdout
    records = read_prompts(tmp_path / "a/train.jsonl")
    assert len({record.prompt for record in records}) == 61
    shares = Counter((record.domain, record.metadata["difficulty"]) for record in records)
    assert len(shares) == 6 and set(shares.values()) <= {10, 11}
    for record in records:
        game = GAMES[record.metadata["game"]]
        assert game.generate(record.metadata["seed"], record.metadata["difficulty"])["prompt"] == record.prompt
        response = game.respond(record.metadata["witness"])
        assert game.score(ScoreRequest(record.domain, record.prompt, response, record.answer)).value == 1

    assert run("--out", tmp_path / "b.jsonl", "--count", 30, *flags).returncode == 0
    first = (tmp_path / "b.jsonl").read_text()
    assert (tmp_path / "a/train.jsonl").read_text().startswith(first)
    assert run("--out", tmp_path / "c.jsonl", "--count", 30, *flags, "--seed", 5).returncode == 0
    assert not {record.prompt for record in read_prompts(tmp_path / "c.jsonl")} & {record.prompt for record in records}


def test_excluded_prompts_do_not_come_back(tmp_path: Path) -> None:
    flags = ["--games", "twenty_four", "--difficulty", "1"]  # a few hundred problems in all
    assert run("--out", tmp_path / "heldout.jsonl", "--count", 60, *flags).returncode == 0
    heldout = read_prompts(tmp_path / "heldout.jsonl")
    # One of them as a conversation, in a second file.
    message = {"id": "x", "domain": "d", "prompt": [{"role": "user", "content": heldout[0].prompt}], "answer": 1}
    (tmp_path / "second.jsonl").write_text(json.dumps(message))
    (tmp_path / "rest.jsonl").write_text("".join((tmp_path / "heldout.jsonl").read_text().splitlines(keepends=True)[1:]))
    exclude = ["--exclude", tmp_path / "second.jsonl", tmp_path / "rest.jsonl"]
    assert run("--out", tmp_path / "train.jsonl", "--count", 60, *flags, *exclude).returncode == 0
    train = read_prompts(tmp_path / "train.jsonl")
    assert len(train) == 60 and not {record.prompt for record in train} & {record.prompt for record in heldout}


def test_a_game_that_is_used_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(seed: int, difficulty: int) -> dict[str, Any]:
        return GAMES["countdown"].generate(seed % 5, difficulty)

    monkeypatch.setattr(make_logic_data, "GAMES", {"countdown": replace(GAMES["countdown"], generate=generate)})
    options = make_logic_data.LogicDataOptions(Path("a.jsonl"), "countdown", 6, difficulty="2")
    drawn = make_logic_data.draw(options)
    assert len({next(drawn).prompt for _ in range(5)}) == 5
    with pytest.raises(UserError, match=r"countdown has too few different problems at difficulty 2 \(5 drawn\)"):
        next(drawn)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--games", "poetry"], "--games: unknown game 'poetry': use some of arc,countdown"),
        (["--games", ""], "--games: unknown game ''"),
        (["--games", "maze,maze"], "name each game once"),
        (["--difficulty", "hard"], "--difficulty hard: write a level or a range"),
        (["--difficulty", "0"], "has the levels 1 to 5"),
        (["--difficulty", "3-2"], "has the levels 1 to 5"),
        (["--difficulty", "2-6"], "has the levels 1 to 5"),
        (["--count", "0"], "--count 0: ask for at least 1"),
        (["--count", "many"], "many"),
        (["--seeds", "1"], "--seed"),
        (["--exclude", "none.jsonl"], "none.jsonl: no such file"),
        (["--out", "a.txt"], "name a file .jsonl or .parquet"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    done = run("--out", tmp_path / "a.jsonl", *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(tmp_path.iterdir())
