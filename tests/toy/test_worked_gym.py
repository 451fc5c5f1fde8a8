"""Worked solutions of reasoning-gym's problems: stored items of each task, and fresh ones where the package is installed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.files import read_prompts, read_sft
from megatron_ring.rewards.logic.reasoning_gym import convert
from megatron_ring.rewards.registry import score
from megatron_ring.toy.worked_gym import SETTINGS, guess, response
from tests.conftest import ROOT
from tests.processes import run

ITEMS = [json.loads(line) for line in (Path(__file__).parent / "gym_items.jsonl").read_text().splitlines()]


def value(item: dict[str, Any], text: str) -> float:
    row = convert(item["task"], item)
    return score(row["domain"], row["prompt"], text, row["answer"]).value


@pytest.mark.parametrize("item", [item for item in ITEMS if "wrong" not in item], ids=lambda item: item["task"])
def test_a_worked_solution_is_right_and_guesses_are_not(item: dict[str, Any]) -> None:
    text = response(item["task"], item, item.get("legs"))
    assert value(item, text) == 1 and len(text.splitlines()) >= 2
    guesses = [value(item, guess(item["task"], item, random.Random(seed))) for seed in range(20)]
    assert sum(guesses) <= 8
    if item["task"] != "countdown":
        with pytest.raises(ValueError, match="the way comes to"):
            response(item["task"], {**item, "answer": item["answer"] + "1"}, item.get("legs"))


def test_an_answer_of_the_package_that_is_wrong_is_found() -> None:
    """Of two equal numbers, 70 and 70.0, it writes one for both."""
    (item,) = (item for item in ITEMS if "wrong" in item)
    with pytest.raises(ValueError, match="number_filtering: the way comes to"):
        response(item["task"], item)


def test_every_task_has_items_and_arithmetic_is_nothing_else() -> None:
    assert {item["task"] for item in ITEMS} == set(SETTINGS)
    for expression in ("__import__('os')", "2**9", "7/2", "1/0", "x", "1.5+1", "True"):
        with pytest.raises((ValueError, SyntaxError)):
            response("basic_arithmetic", {"answer": "1", "metadata": {"expression": expression}})


@pytest.mark.slow
def test_the_files_of_a_study(tmp_path: Path) -> None:
    """Splits share no prompt, parts are of their tasks, the same flags give the same bytes."""
    tool = [sys.executable, str(ROOT / "tools/make_worked_gym_data.py"), "--train", "24", "--validation", "8", "--rl", "16",
            "--heldout", "8", "--guesses", "0.5", "--parts", "a=gcd,lcm", "--repeated", "5"]  # fmt: skip
    done = subprocess.run([*tool, "--out", str(tmp_path / "one")], capture_output=True, text=True)
    try:
        import reasoning_gym  # noqa: F401
    except ImportError:
        assert done.returncode == 2 and done.stderr == "error: reasoning-gym is not installed: pip install reasoning-gym\n"
        return
    assert done.returncode == 0, done.stderr
    subprocess.run([*tool, "--out", str(tmp_path / "two")], check=True, capture_output=True)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 6 and all(
        (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names
    )
    taught = [
        row.messages for name in ("sft_train", "sft_validation") for row in read_sft(tmp_path / "one" / f"{name}.jsonl")
    ]
    asked = [row for name in ("rl_prompts", "heldout") for row in read_prompts(tmp_path / "one" / f"{name}.jsonl")]
    texts = [messages[0].content for messages in taught] + [row.messages[0].content for row in asked]
    assert len(set(texts)) == len(texts) == 56
    part = read_prompts(tmp_path / "one" / "rl_prompts_a.jsonl")
    assert {row.metadata["task"] for row in part} == {"gcd", "lcm"} and len(part) == 4
    lines = [len(messages[1].content.splitlines()) for messages in taught]
    assert 5 <= sum(count <= 3 for count in lines) <= 27  # half of them guess


def test_refusals(tmp_path: Path) -> None:
    for flags, said in (
        (["--tasks", "poetry"], "--tasks poetry: no worked solutions; there are basic_arithmetic, "),
        (["--parts", "a=gcd,maze"], "--parts a=gcd,maze: write NAME=TASK,TASK with tasks of --tasks"),
        (["--guesses", "1.5"], "--guesses 1.5: give a share from 0 to 1"),
    ):
        done = run([sys.executable, str(ROOT / "tools/make_worked_gym_data.py"), "--out", str(tmp_path), *flags])
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}"), done.stderr
