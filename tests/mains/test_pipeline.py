"""The stages as real processes: what they write, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mains.conftest import command, rl_flags, run, sft_flags, start

TIMES = ("time/", "processor/", "throughput/", "memory/")
SFT_KEYS = {"step", "epoch", "tokens", "loss", "entropy", "grad_norm", "lr", "time/step", "throughput/tokens_per_second"}
RL_KEYS = set(
    [
        "step",
        "reward/mean",
        "reward/std",
        "response_length/mean",
        "response_length/max",
        "tokens/generated",
        "tokens/trained",
        "tokens/budget",
        "grad_norm",
        "entropy",
        "kl",
        "clip_fraction",
        "loss/policy",
        "loss/balance",
        "loss/z",
        "mismatch/logprob_abs_mean",
        "mismatch/logprob_abs_max",
        "lr",
        "time/step",
        "time/sample",
        "time/reward",
        "time/train",
        "throughput/tokens_per_second",
        "reward/mean/math",
        "reward/mean/science",
    ]
)


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows]


def weights(run_dir: Path) -> bytes:
    folder = run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.distcp")))


def kill_after(arguments: list[str], run_dir: Path, steps: int) -> None:
    """Start, wait until `steps` are recorded and a checkpoint is whole (it is written in the background), kill -9 all."""
    process = start(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path, latest = run_dir / "metrics.jsonl", run_dir / "checkpoints" / "latest"
    deadline = time.monotonic() + 120
    while not (latest.exists() and path.exists() and path.read_text().count("\n") >= steps):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_sft_writes_its_run_directory(sft_run: Path) -> None:
    rows = metrics(sft_run)
    assert all(row.keys() >= SFT_KEYS for row in rows)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    ends = [row for row in rows if "validation/loss" in row]
    assert [row["epoch"] for row in ends] == [1.0, 2.0]
    assert all((sft_run / "checkpoints" / row["checkpoint"] / "manifest.json").exists() for row in ends)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert any((sft_run / "tensorboard").iterdir())
    again = run([sys.executable, "-m", "megatron_ring.sft", "--config", str(sft_run / "config.yaml")])
    assert again.returncode == 0 and metrics(sft_run) == rows, again.stderr


@pytest.mark.slow
def test_checkpoints_of_some_epochs_and_of_weights_alone(tiny_data: Path, tmp_path: Path, sft_run: Path) -> None:
    """The last epoch has one in any case. A run that has them all has nothing more to do; one that has not cannot go on."""
    out = tmp_path / "run"
    arguments = command("megatron_ring.sft", *sft_flags(tiny_data, out, "--save-epochs", "3", "--no-save-optimizer"))
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    ends = [row for row in metrics(out) if "validation/loss" in row]
    assert ["checkpoint" in row for row in ends] == [False, True]
    assert timeless(metrics(out))[-1] == timeless(metrics(sft_run))[-1]
    again = run(arguments)
    assert again.returncode == 0 and "steps are done" in again.stdout, again.stderr
    place = arguments.index("--epochs")
    longer = run([*arguments[: place + 1], "3", *arguments[place + 2 :]])
    assert longer.returncode == 2 and "holds weights but no optimizer state" in longer.stderr


@pytest.mark.slow
def test_sft_killed_continues_to_the_same_numbers(tiny_data: Path, tmp_path: Path, sft_run: Path) -> None:
    out = tmp_path / "killed"
    arguments = command("megatron_ring.sft", *sft_flags(tiny_data, out, "--save-every", "2"))
    kill_after(arguments, out, 3)
    kill_after(arguments, out, 7)
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "torn')
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    dropped = [{k: v for k, v in row.items() if k != "checkpoint"} for row in timeless(metrics(out))]
    assert dropped == [{k: v for k, v in row.items() if k != "checkpoint"} for row in timeless(metrics(sft_run))]
    assert weights(out) == weights(sft_run)


@pytest.mark.slow
@pytest.mark.distributed
def test_rl_trains_exactly_the_budget_and_a_kill_changes_nothing(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ["--steps", "5", "--save-every", "2", "--budget.tokens", "500", "--budget.scope", "rank"]
    first = command("megatron_ring.rl", *rl_flags(tiny_data, whole, sft_checkpoint.parent / "latest", *more))
    done = run(first, really=True)
    assert done.returncode == 0, done.stderr
    assert f"init_from: {sft_checkpoint}\n" in (whole / "config.yaml").read_text()  # `latest` may name another one later
    rows = metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and all(row.keys() >= RL_KEYS for row in rows)
    assert all(row["tokens/trained"] == row["tokens/budget"] == 500 for row in rows)
    assert max(row["sampling_rounds"] for row in rows) > 1  # one round of 16 short responses does not hold 500 tokens
    assert max(row["mismatch/logprob_abs_max"] for row in rows) < 1e-4
    for step, row in enumerate(rows, start=1):
        responses = [json.loads(line) for line in (whole / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]
        assert sum(response["trained_tokens"] for response in responses) == 500
        assert sum(response["tokens"] for response in responses) == row["tokens/generated"]
        assert len({(r["prompt_id"], r["sample"]) for r in responses}) == len(responses) == 16 * row["sampling_rounds"]

    arguments = command("megatron_ring.rl", *rl_flags(tiny_data, killed, sft_checkpoint, *more))
    kill_after(arguments, killed, 3)
    done = run(arguments)
    assert done.returncode == 0 and "continuing after step " in done.stdout, (done.stdout, done.stderr)
    assert timeless(metrics(killed)) == timeless(rows)
    assert weights(killed) == weights(whole)

    longer = command("megatron_ring.rl", *arguments[3:], "--steps", "6", "--budget.max-rounds", "8", processes=2)
    done = run(longer)
    assert "Phi was 500 where it is 1,000 now" in done.stdout, (done.stdout, done.stderr)
    assert done.returncode == 0 and metrics(killed)[5]["tokens/trained"] == 1000, done.stderr


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for a reward of several parts in one of the two domains, and tokens for the same micro-batches under every
    layout: router losses are each micro-batch's."""
    gate = {"name": "one_box", "domain": "format/one_box"}
    length = {"maximum": 30, "cache": 20, "weight": 0.5}
    declared = {"math": {"parts": [{"name": "correct", "domain": "math"}], "gates": [gate], "length": length}}
    path = tmp_path_factory.mktemp("rewards") / "rewards.json"
    path.write_text(json.dumps(declared))
    return ["--rewards.compositions", str(path), "--sampling.max-new-tokens", "40", "--budget.tokens", "300"]


@pytest.fixture(scope="module")
def rl_alone(tiny_data: Path, sft_checkpoint: Path, composed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps in one process."""
    out = tmp_path_factory.mktemp("runs") / "alone"
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, out, sft_checkpoint, *composed)))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_reward_of_parts_is_logged_by_part(rl_alone: Path) -> None:
    for step, row in enumerate(metrics(rl_alone), start=1):
        responses = [json.loads(line) for line in (rl_alone / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]
        details = [response["detail"] for response in responses if response["domain"] == "math"]
        assert all("detail" not in response for response in responses if response["domain"] != "math")
        for response in responses:
            if response["domain"] == "math":
                detail = response["detail"]
                penalty = max(-1.0, min(0.0, (10 - response["tokens"]) / 20))
                assert detail["length_penalty"] == pytest.approx(penalty)
                total = detail["parts"]["correct"][0] * detail["gates"]["one_box"][0] + 0.5 * penalty
                assert response["reward"] == pytest.approx(total)
        for key, values in (
            ("reward_parts/correct", [detail["parts"]["correct"][0] for detail in details]),
            ("reward_gates/one_box", [detail["gates"]["one_box"][0] for detail in details]),
            ("reward_length_penalty", [detail["length_penalty"] for detail in details]),
        ):
            assert row[key] == pytest.approx(sum(values) / len(values)), key
            assert row[key] == row.get(f"{key}/math", row[key])
        assert row["reward/mean"] == pytest.approx(sum(response["reward"] for response in responses) / len(responses))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("flags", [[], ["--parallel.tensor", "2"], ["--parallel.expert", "2"], ["--parallel.pipeline", "2"]])
def test_rl_runs_under_every_layout(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, rl_alone: Path, composed: list[str], flags: list[str]
) -> None:
    spread = tmp_path / "spread"
    more = [*composed, *flags]
    done = run(command("megatron_ring.rl", *rl_flags(tiny_data, spread, sft_checkpoint, *more), processes=2))
    assert done.returncode == 0, done.stderr
    one, two = metrics(rl_alone), metrics(spread)
    assert len(two) == 2 and all(row["tokens/trained"] == 300 for row in two)
    for key in ("reward/mean", "response_length/mean", "tokens/generated", "reward_gates/one_box"):
        assert two[0][key] == one[0][key], key
    for key in ("grad_norm", "entropy", "loss/policy", "loss/balance", "loss/z"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-3, abs=1e-5), key


@pytest.mark.slow
def test_evaluation_and_export_round_trip(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    """The exported folder evaluates to the same responses as the checkpoint it came from."""
    flags = ["--prompts", str(tiny_data / "heldout.jsonl"), "--tokenizer", str(tiny_data / "tokenizer"),
             "--sampling.max-new-tokens", "40", "--sampling.top-p", "1"]  # fmt: skip
    hf, first, second = tmp_path / "hf", tmp_path / "a", tmp_path / "b"
    latest = sft_checkpoint.parent / "latest"  # as good as the folder that it names
    export = [sys.executable, "tools/convert_hf.py", "export", "--checkpoint", str(latest), "--out", str(hf),
              "--tokenizer", str(tiny_data / "tokenizer"), "--dtype", "fp32"]  # fmt: skip
    assert run(export).returncode == 0
    assert run(export).returncode == 2  # never over an existing folder
    for source, out in ((latest, first), (hf, second)):
        arguments = command("megatron_ring.evaluate", "--checkpoint", str(source), "--out", str(out), *flags)
        done = run(arguments, really=source == hf)
        assert done.returncode == 0, done.stderr
    assert (first / "samples.jsonl").read_text() == (second / "samples.jsonl").read_text()
    result = json.loads((first / "result.json").read_text())
    rows = [json.loads(line) for line in (first / "samples.jsonl").read_text().splitlines()]
    assert result["problems"] == len(rows) == 24 and result["checkpoint"] == str(sft_checkpoint)
    assert result["pass_at_1"] == sum(row["reward"] for row in rows) / 24
    assert json.loads((hf / "config.json").read_text())["model_type"] == "bailing_moe"
