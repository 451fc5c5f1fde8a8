"""The command line tool: files that read back, disjoint splits, the same bytes twice, mistakes in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_ring.data.files import read_prompts, read_sft
from megatron_ring.data.tokenizer import RingTokenizer

ROOT = Path(__file__).parents[2]
SIZES = ["--train", "200", "--validation", "20", "--rl", "60", "--heldout", "24"]


def run(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/make_tiny_data.py"), *map(str, flags)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_what_the_tiny_runs_read(tmp_path: Path) -> None:
    result = run("--out", tmp_path / "a", *SIZES)
    assert result.returncode == 0, result.stderr
    assert "200 SFT, 20 validation, 60 RL and 24 held-out problems" in result.stdout
    sft = [read_sft(tmp_path / "a" / name) for name in ("sft_train.jsonl", "sft_validation.jsonl")]
    prompts = [read_prompts(tmp_path / "a" / name) for name in ("rl_prompts.jsonl", "heldout.jsonl")]
    assert [len(part) for part in (*sft, *prompts)] == [200, 20, 60, 24]
    asked = [record.messages[0].content for part in (*sft, *prompts) for record in part]
    assert len(set(asked)) == len(asked)
    assert {record.domain for part in prompts for record in part} == {"math", "science"}
    tokenizer = RingTokenizer.load(tmp_path / "a/tokenizer")
    assert all(len(tokenizer.training_tokens(record).tokens) < 80 for record in sft[0])

    assert run("--out", tmp_path / "b", *SIZES).returncode == 0
    assert run("--out", tmp_path / "b", *SIZES).returncode == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert run("--out", tmp_path / "c", *SIZES, "--seed", "1").returncode == 0
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--difficulty", "arithmetic.terms"], "--difficulty arithmetic.terms: write KNOB=NUMBER"),
        (["--difficulty", "arithmetic.terms=99"], "choose a value from 2 to 8"),
        (["--families", "poetry"], "unknown problem family 'poetry'"),
        (["--train", "0"], "at least 1 problem each"),
        (["--vocab-size", "10"], "choose at least 259"),
        (["--difficulty", "arithmetic.terms=2", "--train", "1000000"], "too few distinct problems"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path: Path, flags: list[str], message: str) -> None:
    result = run("--out", tmp_path / "a", *SIZES, *flags)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_guesses_replace_the_asked_share_of_solutions(tmp_path: Path) -> None:
    clean, guessed = tmp_path / "clean", tmp_path / "guessed"
    sizes = ["--train", "400", "--validation", "40", "--rl", "40", "--heldout", "40"]
    for out, more in ((clean, []), (guessed, ["--guesses", "0.4"])):
        tool = [sys.executable, str(ROOT / "tools/make_tiny_data.py"), "--out", str(out)]
        done = subprocess.run(
            [*tool, *sizes, *more], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""}
        )
        assert done.returncode == 0, done.stderr
    for name in ("rl_prompts.jsonl", "heldout.jsonl"):
        assert (clean / name).read_bytes() == (guessed / name).read_bytes()
    rows = [map(json.loads, (out / "sft_train.jsonl").read_text().splitlines()) for out in (clean, guessed)]
    pairs = list(zip(*rows, strict=True))
    assert all(a["prompt"] == b["prompt"] for a, b in pairs)
    changed = [(a["response"].splitlines()[-1], b["response"]) for a, b in pairs if a != b]
    assert 110 < len(changed) < 210  # 160 expected, five standard deviations
    right = 0
    for answer, guess in changed:
        numbers = [int(re.search(r"\d+", text)[0]) for text in (answer, guess)]
        assert abs(numbers[0] - numbers[1]) <= 9 and answer.split()[1:] == guess.split()[1:]  # the unit stays
        right += numbers[0] == numbers[1]
    assert right < 0.2 * len(changed)
