"""Run directories as people treat them: other data, moved files, a second run, signals, checkpoints moved by hand."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mains.conftest import command, rl_flags, run, sft_flags, start
from tests.mains.test_pipeline import metrics

STOPPED = 75


def short(data: Path, out: Path, *more: str) -> list[str]:
    """Six steps of SFT with a checkpoint after every second."""
    flags = ["--max-steps", "6", "--save-every", "2", "--data.global-batch", "2", *more]
    return command("megatron_ring.sft", *sft_flags(data, out, *flags))


@pytest.fixture(scope="module")
def six_steps(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("six") / "run"
    done = run(short(tiny_data, out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def copied(six_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(six_steps, tmp_path / "run"))


def test_latest_by_hand_in_a_real_run(copied: Path, tiny_data: Path, fails_with: Any) -> None:
    """Set back, the run keeps what it saves; without `latest`, or with all checkpoints gone, nothing begins anew."""
    checkpoints = copied / "checkpoints"
    for name in ("step_6.bak", "step_best"):
        (checkpoints / name).mkdir()
    (checkpoints / "latest").write_text("step_2\n")
    done = run(short(tiny_data, copied, "--keep-last", "1", "--save-every", "3", "--max-steps", "3"))
    assert done.returncode == 0, done.stderr
    assert "latest names step_2: step_4, step_6 stay(s) until this run comes to the same step" in done.stdout
    assert (checkpoints / "latest").read_text() == "step_3\n"
    left = {path.name for path in checkpoints.iterdir()}
    assert left == {"latest", "step_3", "step_4", "step_6", "step_6.bak", "step_best"}
    (checkpoints / "latest").unlink()
    before = (copied / "metrics.jsonl").read_bytes()
    said = fails_with(short(tiny_data, copied))
    assert "whole checkpoints: step_3, step_4, step_6; to go on from the newest: echo step_6 > " in said
    shutil.rmtree(checkpoints)
    assert "checkpoints were saved here, and none is whole now" in fails_with(short(tiny_data, copied))
    assert (copied / "metrics.jsonl").read_bytes() == before


def test_other_content_is_refused_and_moved_content_is_not(copied: Path, tiny_data: Path, fails_with: Any) -> None:
    moved = Path(shutil.copytree(tiny_data, copied.parent / "moved"))
    done = run(short(moved, copied, "--max-steps", "7"))
    assert done.returncode == 0 and "continuing after step 6" in done.stdout, done.stderr
    rows = (moved / "sft_train.jsonl").read_text().splitlines()
    (moved / "sft_train.jsonl").write_text("\n".join([*rows[1:], rows[0]]) + "\n")
    said = fails_with(short(moved, copied, "--max-steps", "8"))
    assert said.startswith("error: --data.train: the training data: the content is not that of the run so far")
    shutil.copy(tiny_data / "sft_train.jsonl", moved)
    config = json.loads((moved / "tokenizer" / "tokenizer_config.json").read_text())
    template = next((moved / "tokenizer").glob("chat_template*"), None)
    if template is not None:
        template.write_text(template.read_text() + " ")
    else:
        config["chat_template"] += " "
        (moved / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    said = fails_with(short(moved, copied, "--max-steps", "8"))
    assert said.startswith("error: --data.tokenizer: the tokenizer or its chat template: the content is not that of the run")


def test_more_epochs_stretch_the_schedule_and_say_so(copied: Path, tiny_data: Path) -> None:
    again = run(short(tiny_data, copied))
    assert again.returncode == 0 and "all 6 steps are done: more need more --epochs or --max-steps" in again.stdout
    done = run(short(tiny_data, copied, "--epochs", "3", "--max-steps", "7", "--optimizer.schedule", "cosine"))
    if done.returncode == 2:  # the schedule itself may not change
        assert "optimizer.schedule" in done.stderr
        done = run(short(tiny_data, copied, "--epochs", "3", "--max-steps", "7"))
    assert done.returncode == 0 and len(metrics(copied)) == 7, done.stderr
    assert "the epochs had " in done.stdout and "stretches to: in step 7 it is " in done.stdout


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_second_run_is_refused_and_sigterm_saves(tiny_data: Path, tmp_path: Path, fails_with: Any) -> None:
    out = tmp_path / "run"
    arguments = command("megatron_ring.sft", *sft_flags(tiny_data, out, "--epochs", "500"))
    with start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(out / "metrics.jsonl", 2, process)
            said = fails_with(arguments)
            assert "another run is going on in it (host " in said and f"process {process.pid})" in said
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=120)
        finally:
            process.kill()
    name = (out / "checkpoints" / "latest").read_text().strip()
    assert process.returncode == STOPPED, err
    assert err.splitlines()[-1] == f"stopped by SIGTERM: {name} is saved; the same command continues"
    assert len(metrics(out)) == int(name.removeprefix("step_"))
    done = run([*arguments, "--max-steps", str(len(metrics(out)) + 1)])
    assert done.returncode == 0 and f"continuing after step {name.removeprefix('step_')}" in done.stdout, done.stderr


def test_a_grace_that_is_over_ends_the_run_all_the_same(tmp_path: Path) -> None:
    """A step that never ends: the last checkpoint is named, and nothing waits for it."""
    script = """
import os, signal, time
from megatron_ring.run.stopping import StopRequest
with StopRequest(0.2, lambda: "step_4 is the last checkpoint"):
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(60)
"""
    began = time.monotonic()
    done = run([sys.executable, "-c", script])
    assert done.returncode == STOPPED and time.monotonic() - began < 50
    said = "stopped by SIGUSR1: the step was not saved within --grace-seconds 0.2; step_4 is the last checkpoint\n"
    assert done.stderr.endswith(said)


def test_a_loss_that_is_not_finite_ends_in_one_line(tiny_data: Path, tmp_path: Path) -> None:
    done = run(short(tiny_data, tmp_path / "run", "--optimizer.lr", "1e30", "--optimizer.clip-grad", "1e30"))
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 3 and line.startswith("error: alarm at step ") and "checkpoint" in line


@pytest.mark.slow
@pytest.mark.distributed
def test_another_layout_and_a_signal_to_one_of_two(copied: Path, tiny_data: Path) -> None:
    flags = sft_flags(tiny_data, copied, "--max-steps", "6", "--save-every", "2", "--data.global-batch", "2")
    two = command(
        "megatron_ring.sft", *flags, "--epochs", "500", "--max-steps", "5000", "--parallel.tensor", "2", processes=2
    )
    with start(two, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(copied / "metrics.jsonl", 8, process)
            holder = int((copied / ".lock").read_text().split()[-1])
            os.kill(holder, signal.SIGUSR1)  # rank 0 alone
            out, err = process.communicate(timeout=200)
        finally:
            process.kill()
    name = (copied / "checkpoints" / "latest").read_text().strip()
    assert f"stopped by SIGUSR1: {name} is saved" in err and process.returncode == 1, err
    assert "sft: another layout than before (tensor 1 -> 2, world_size 1 -> 2)" in out
    assert len(metrics(copied)) == int(name.removeprefix("step_"))


def test_settings_are_those_of_the_checkpoint_also_where_config_yaml_was_edited(
    copied: Path, tiny_data: Path, fails_with: Any
) -> None:
    path = copied / "config.yaml"
    edited = path.read_text().replace("lr: 0.003", "lr: 0.001")
    assert edited != path.read_text()
    path.write_text(edited)
    before = (copied / "metrics.jsonl").read_bytes()
    said = fails_with(command("megatron_ring.sft", "--config", str(path), "--max-steps", "7"))
    assert "holds a run of another configuration (optimizer.lr 0.003 -> 0.001)" in said
    path.unlink()
    assert "(optimizer.lr 0.003 -> 0.002)" in fails_with(short(tiny_data, copied, "--optimizer.lr", "2e-3"))
    assert (copied / "metrics.jsonl").read_bytes() == before
    done = run(short(tiny_data, copied, "--max-steps", "7"))
    assert done.returncode == 0 and "continuing after step 6" in done.stdout and "lr: 0.003" in path.read_text(), done.stderr


def reinforced(data: Path, out: Path, start: Path, *more: str) -> list[str]:
    return command("megatron_ring.rl", *rl_flags(data, out, start, "--save-every", "1", "--steps", "1", *more))


@pytest.mark.slow
def test_first_weights_that_were_replaced_moved_or_taken_away(
    tiny_data: Path, tmp_path: Path, sft_run: Path, fails_with: Any
) -> None:
    """Between stop and continuation: a KL reference is made of them, and refuses others; without it they are not needed."""
    older, newer = sorted((sft_run / "checkpoints").glob("step_*"), key=lambda path: int(path.name[5:]))[-2:]
    begin, with_kl, plain = tmp_path / "begin", tmp_path / "kl", tmp_path / "plain"
    shutil.copytree(newer, begin)
    without = ["--objective.kl-beta", "0"]
    for out, more in ((with_kl, []), (plain, without)):
        done = run(reinforced(tiny_data, out, begin, *more))
        assert done.returncode == 0, done.stderr
    shutil.move(begin, tmp_path / "moved")
    done = run(reinforced(tiny_data, with_kl, tmp_path / "moved", "--steps", "2"))
    assert done.returncode == 0 and "continuing after step 1" in done.stdout, done.stderr
    said = fails_with(reinforced(tiny_data, with_kl, begin, "--steps", "3"))
    assert str(begin) in said
    done = run(reinforced(tiny_data, plain, begin, *without, "--steps", "2"))
    assert done.returncode == 0 and "continuing after step 1" in done.stdout, done.stderr
    shutil.copytree(older, begin)
    before = (with_kl / "metrics.jsonl").read_bytes()
    said = fails_with(reinforced(tiny_data, with_kl, begin, "--steps", "3"))
    assert said.startswith("error: --init-from: the weights of --init-from: the content is not that of the run so far")
    assert (with_kl / "metrics.jsonl").read_bytes() == before
