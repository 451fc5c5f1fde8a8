"""What a user can get wrong: one line that names it, and exit status 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mains.conftest import command, rl_flags, run, sft_flags

Fails = Callable[..., str]


def test_unknown_flag(fails_with: Fails, tiny_data: Path, tmp_path: Path) -> None:
    line = fails_with(
        command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", "--optimizer.lrr", "1")), really=True
    )
    assert "--optimizer.lrr" in line and "did you mean --optimizer.lr?" in line


def test_malformed_value_and_missing_flag(fails_with: Fails, tiny_data: Path, tmp_path: Path) -> None:
    line = fails_with(command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", "--epochs", "many")))
    assert "--epochs" in line
    assert "--run-dir" in fails_with(command("megatron_ring.sft", "--preset", "ring-tiny"))


def test_unknown_preset(fails_with: Fails, tiny_data: Path, tmp_path: Path) -> None:
    line = fails_with(command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", "--preset", "ring-tinny")))
    assert "ring-tinny" in line and "did you mean ring-tiny" in line


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--parallel.tensor", "2"], "TP*PP = 2 does not divide 1"),
        (["--parallel.expert", "3"], "EP*ETP*PP = 3 does not divide 1"),
        (["--optimizer.lr", "-1"], "--optimizer.lr"),
        (["--data.global-batch", "0"], "--data.global-batch"),
    ],
)
def test_impossible_settings_are_said_with_the_numbers(
    fails_with: Fails, tiny_data: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    assert said in fails_with(command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", *flags)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n', "train.jsonl:2"),
        ('{"prompt": "a", "response": "b"}\nnot json\n', "train.jsonl:2"),
        ("", "train.jsonl"),
        (None, "train.jsonl"),
    ],
)
def test_bad_data_is_named_by_file_and_line(
    fails_with: Fails, tiny_data: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "train.jsonl"
    if text is not None:
        path.write_text(text)
    assert said in fails_with(command("megatron_ring.sft", *sft_flags(tiny_data, tmp_path / "r", "--data.train", str(path))))


def test_a_run_of_another_configuration(fails_with: Fails, tiny_data: Path, sft_run: Path) -> None:
    line = fails_with(command("megatron_ring.sft", *sft_flags(tiny_data, sft_run, "--optimizer.lr", "1e-3")))
    assert "another configuration" in line and "optimizer.lr 0.003 -> 0.001" in line


def test_a_checkpoint_of_another_shape(fails_with: Fails, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    flags = sft_flags(tiny_data, tmp_path / "r", "--preset", "ring-lite-slice-4", "--init-from", str(sft_checkpoint))
    smaller = json.loads((sft_checkpoint / "manifest.json").read_text())
    smaller["model"]["num_layers"] = 4
    other = tmp_path / "other"
    shutil.copytree(sft_checkpoint, other)
    (other / "manifest.json").write_text(json.dumps(smaller))
    flags = sft_flags(tiny_data, tmp_path / "r", "--init-from", str(other))
    assert "another shape" in fails_with(command("megatron_ring.sft", *flags))


def test_a_missing_checkpoint(fails_with: Fails, tiny_data: Path, tmp_path: Path) -> None:
    line = fails_with(command("megatron_ring.rl", *rl_flags(tiny_data, tmp_path / "r", tmp_path / "nothing")))
    assert "nothing" in line


def test_a_budget_that_cannot_be_reached_says_why(
    fails_with: Fails, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    flags = rl_flags(tiny_data, tmp_path / "r", sft_checkpoint, "--budget.max-rounds", "2", budget=760)
    done = run(command("megatron_ring.rl", *flags))
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1
    assert "step 1: 2 round(s) of 4 prompts x 4 samples gave" in lines[0] and "budget 760" in lines[0]


def test_every_rank_fails_but_one_speaks(tiny_data: Path, tmp_path: Path) -> None:
    flags = sft_flags(tiny_data, tmp_path / "r", "--parallel.tensor", "3")
    done = run(command("megatron_ring.sft", *flags, processes=2))
    assert done.returncode != 0
    assert done.stderr.count("error: layout TP=3") == 1
