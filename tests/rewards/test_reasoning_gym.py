"""Tasks of reasoning-gym under our verifiers: two stored items of each, and fresh ones where the package is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.files import read_prompts
from megatron_ring.errors import UserError
from megatron_ring.rewards import score
from megatron_ring.rewards.logic.reasoning_gym import TASKS, convert

ROOT = Path(__file__).parents[2]
ITEMS = [json.loads(line) for line in (Path(__file__).parent / "labelled/reasoning_gym.jsonl").read_text().splitlines()]


def value(row: dict[str, Any], answer: str) -> float:
    boxed = row["domain"] in ("logic/countdown", "logic/twenty_four")
    response = f"So \\boxed{{{answer}}}" if boxed else f"So:\n```\n{answer}\n```"
    reward = score(row["domain"], row["prompt"], response, row["answer"])
    assert (reward.value == 1) == (reward.reason == "correct")
    return reward.value


def others(answer: str) -> list[str]:
    """Answers that are near, and wrong."""
    digits = [index for index, letter in enumerate(answer) if letter.isdigit()]
    if digits:
        place = digits[-1]
        return [answer[:place] + str((int(answer[place]) + 1) % 10) + answer[place + 1 :], answer + "\n0", answer + " 1"]
    return [answer + "x", f"{answer} or {answer}", answer[1:] or "x"]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item["task"])
def test_the_stored_answer_counts_and_near_ones_do_not(item: dict[str, Any]) -> None:
    row = convert(item["task"], item)
    if "witness" not in row["metadata"]:
        assert item["task"] in ("countdown", "puzzle24") and item["answer"].startswith("-")
        assert value(row, item["answer"]) == 0 and "no unary minus" in row["prompt"]
        return
    assert value(row, item["answer"]) == 1
    assert value(row, "\n " + item["answer"].replace("\n", " \n\n ") + " \n") == 1
    for wrong in others(item["answer"]):
        assert value(row, wrong) == 0, wrong
    assert score(row["domain"], None, row["prompt"], row["answer"]).value == 0
    assert score(row["domain"], None, item["answer"], row["answer"]).value == 0


def test_what_is_alike() -> None:
    row = convert("gcd", {"question": "q", "answer": "1200", "metadata": {}})
    assert [value(row, text) for text in ("1,200", "1200.0", "1201", "١٢٠٠")] == [1, 1, 0, 0]
    row = convert("course_schedule", {"question": "q", "answer": "True", "metadata": {}})
    assert [value(row, text) for text in ("true", "TRUE", "False", "True.")] == [1, 1, 0, 0]
    row = convert("caesar_cipher", {"question": "q", "answer": "SIR DO", "metadata": {}})
    assert [value(row, text) for text in ("SIR  DO", "sir do", "SIRDO")] == [1, 0, 0]
    for answer in (None, {}, {"text": " "}, {"text": 5}):
        assert score("logic/exact", None, "```\nx\n```", answer).reason.startswith("the reference is malformed")
    with pytest.raises(UserError, match="unknown reasoning-gym task 'poetry'"):
        convert("poetry", ITEMS[0])
    assert {item["task"] for item in ITEMS} == set(TASKS)


def run(*flags: str | Path | int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/make_reasoning_gym_data.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mistakes_end_with_one_line(tmp_path: Path) -> None:
    for flags, words in (
        (["--tasks", "poetry"], "unknown task 'poetry'"),
        (["--tasks", "gcd,gcd"], "name each task once"),
        (["--count", "0"], "--count 0"),
    ):
        done = run("--out", tmp_path / "a.jsonl", *flags)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_fresh_problems(tmp_path: Path) -> None:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        done = run("--out", tmp_path / "a.jsonl")
        assert done.returncode == 2 and done.stderr == "error: reasoning-gym is not installed: pip install reasoning-gym\n"
        return
    done = run("--out", tmp_path / "a.jsonl", "--count", 74, "--seed", 3)
    assert done.returncode == 0, done.stderr
    records = read_prompts(tmp_path / "a.jsonl")
    assert len({record.prompt for record in records}) == 74
    for record in records:
        row = {"domain": record.domain, "prompt": record.prompt, "answer": record.answer}
        assert value(row, record.metadata["witness"]) == 1 if "witness" in record.metadata else record.domain, record
    assert run("--out", tmp_path / "b.jsonl", "--count", 74, "--seed", 3).returncode == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
