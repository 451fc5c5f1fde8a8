"""What watches over an RL run, as a user meets it: stages of data, alarms, rollbacks, held-out evaluation, times."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.cli import parse
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import UserError
from tests.mains.conftest import command, rl_flags, run, start
from tests.mains.test_objectives import train_here
from tests.mains.test_pipeline import metrics, timeless

SECOND_STAGE = 3  # steps of the first


@pytest.fixture(scope="module")
def stage_file(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Math alone, then science and math 1 : 3."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "all.jsonl").write_bytes((tiny_data / "rl_prompts.jsonl").read_bytes())
    math, science = {"file": "all.jsonl", "domain": "math"}, {"file": "all.jsonl", "domain": "science", "weight": 1}
    stages = [{"steps": SECOND_STAGE, "prompts": [math]}, {"prompts": [science, {**math, "weight": 3}]}]
    (folder / "stages.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return folder / "stages.yaml"


def responses(run_dir: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.distributed
def test_stages_of_data_and_a_stop_on_either_side_of_their_border(
    run_on: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, stage_file: Path
) -> None:
    more = ["--data.prompts", str(stage_file), "--save-every", "1", "--data.drop-after", "1", "--data.curriculum",
            "solve-rate", "--data.curriculum-floor", "0.3", "--budget.tokens", "100",
            "--sampling.max-new-tokens", "12"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on(2, train_here, rl_flags(tiny_data, whole, sft_checkpoint, *more, "--steps", "6"))
    for steps in ("2", "4", "6"):
        run_on(2, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more, "--steps", steps))
    rows = metrics(whole)
    assert [row["data/stage"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert rows[-1]["data/dropped_fraction"] > 0
    dropless = [{k: v for k, v in row.items() if k != "checkpoint"} for row in timeless(rows)]
    assert [{k: v for k, v in row.items() if k != "checkpoint"} for row in timeless(metrics(parts))] == dropless
    for step in range(1, 7):
        here = responses(whole, step)
        science = sum(row["domain"] == "science" for row in here)
        assert science == (0 if step <= SECOND_STAGE else len(here) / 4)


@pytest.mark.slow
def test_what_a_run_that_goes_on_says_and_refuses(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, fails_with: Any
) -> None:
    path, declared = tmp_path / "r.json", {d: {"parts": [{"name": "x", "domain": d}]} for d in ("math", "science")}
    path.write_text(json.dumps(declared))
    (tmp_path / "s.yaml").write_text(
        f"stages: [{{steps: 2, prompts: [{{file: {tiny_data}/rl_prompts.jsonl, domain: math}}]}}, "
        f"{{prompts: [{{file: {tiny_data}/rl_prompts.jsonl, domain: science}}]}}]"
    )
    more = ["--rewards.compositions", str(path), "--data.prompts", str(tmp_path / "s.yaml"), "--budget.schedule", "linear",
            "--budget.final-tokens", "200", "--save-every", "1"]  # fmt: skip
    flags = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint, *more, budget=300)
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0, done.stderr
    late = "rl: stage 2 of the data begins at step 3: with --steps 2 nothing is drawn from it"
    assert late in done.stdout and "--steps was" not in done.stdout
    done = run(command("megatron_ring.rl", *flags, "--steps", "4"))
    assert done.returncode == 0, done.stderr
    said = "rl: --steps was 2 and is 4, which schedules stretch to: in step 3 Phi (linear) is 233 where it was to be 200"
    assert said in done.stdout and "stage 2" not in done.stdout
    path.write_text(json.dumps(declared | {"math": {"parts": [{"name": "x", "domain": "math", "weight": 2}]}}))
    line = fails_with(command("megatron_ring.rl", *flags, "--steps", "5"))
    assert "the compositions are not those of the checkpoint (fingerprint " in line


def test_a_domain_without_a_verifier_is_refused_before_anything_starts(
    fails_with: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    rows = [{"id": "1", "domain": "poetry", "prompt": "?", "answer": "!"}]
    (tmp_path / "poetry.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first = {"steps": 9, "prompts": [{"file": str(tiny_data / "rl_prompts.jsonl")}]}
    stages = [first, {"prompts": [{"file": "poetry.jsonl"}]}]
    (tmp_path / "stages.json").write_text(json.dumps({"stages": stages}))
    flags = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint)
    said = fails_with(command("megatron_ring.rl", *flags, "--data.prompts", str(tmp_path / "stages.json")))
    assert "poetry.jsonl: unknown domain 'poetry'" in said and not (tmp_path / "run").exists()
    said = fails_with(command("megatron_ring.rl", *flags, "--evaluation.prompts", str(tmp_path / "poetry.jsonl")))
    assert "poetry.jsonl: unknown domain 'poetry'" in said and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_times_add_up_and_held_out_evaluation_is_that_of_the_checkpoint(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    held_out = ["--evaluation.prompts", str(tiny_data / "heldout.jsonl"), "--evaluation.every", "2",
                "--evaluation.samples-per-problem", "2", "--evaluation.top-p", "0.9"]  # fmt: skip
    out = tmp_path / "run"
    flags = rl_flags(tiny_data, out, sft_checkpoint, *held_out, "--steps", "3", "--save-every", "2")
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0, done.stderr
    rows = metrics(out)
    phases = {"sample", "reward", "select", "pack", "first_pass", "train", "other"}
    for row in rows:
        times = {key.removeprefix("time/"): value for key, value in row.items() if key.startswith("time/")}
        total = times.pop("step")
        assert sum(times.values()) == pytest.approx(total) and all(value >= 0 for value in times.values())
        expected = phases | ({"evaluation"} if row["step"] > 1 else set()) | ({"save_wait"} if row["step"] == 3 else set())
        assert times.keys() == expected
        assert 0 < row["processor/train"] < row["processor/step"]
        assert 0.1 < row["memory/rss_gib"] < 8 and 0 < row["mismatch/k_p01"] <= row["mismatch/k_p99"]
    assert "evaluation/pass_at_1" not in rows[0]
    done = run(command("megatron_ring.evaluate", "--checkpoint", str(out / "checkpoints" / "step_2"), "--prompts",
                       str(tiny_data / "heldout.jsonl"), "--tokenizer", str(tiny_data / "tokenizer"), "--out",
                       str(tmp_path / "alone"), "--samples-per-problem", "2", "--sampling.top-p", "0.9",
                       "--sampling.max-new-tokens", "24", "--rewards.workers", "1"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    alone = json.loads((tmp_path / "alone" / "result.json").read_text())
    for key in ("pass_at_1", "response_length_mean", "truncated_fraction"):
        assert rows[1][f"evaluation/{key}"] == alone[key]
    for domain, part in alone["by_domain"].items():
        assert rows[1][f"evaluation/pass_at_1/{domain}"] == part["pass_at_1"]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"histograms": 0})
    board.Reload()
    histograms = board.Histograms("mismatch/log_k")
    assert [h.step for h in histograms] == [1, 2, 3]
    assert [sum(h.histogram_value.bucket) for h in histograms] == [row["tokens/trained"] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "processes", "metric", "step"), [("1e3", 1, "grad_norm", 3), ("1e10", 2, "sampling", 2)])
def test_a_broken_update_stops_the_run(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, lr: str, processes: int, metric: str, step: int
) -> None:
    """A learning rate that overflows gradients after two updates, or already logits after one."""
    flags = rl_flags(tiny_data, tmp_path, sft_checkpoint, "--optimizer.lr", lr, "--steps", "5", "--budget.tokens", "60")
    done = run(command("megatron_ring.rl", *flags, processes=processes), really=processes > 1)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == (3 if processes == 1 else 1), done.stderr  # torchrun ends with 1 whatever its processes do
    assert processes == 1 or "exitcode  : 3" in done.stderr
    assert len(said) == 1 and f"alarm at step {step}: {metric}" in said[0] and "there is no checkpoint yet" in said[0]
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, step + 1)) and "entropy" not in rows[-1]
    assert [(a["step"], a["metric"], a["action"]) for a in rows[-1]["alarms"]] == [(step, metric, "stop")]
    assert not list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_a_held_out_evaluation_sees_broken_weights_first(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    flags = rl_flags(tiny_data, tmp_path, sft_checkpoint, "--optimizer.lr", "1e10", "--steps", "3", "--budget.tokens", "60",
                     "--evaluation.prompts", str(tiny_data / "heldout.jsonl"), "--evaluation.every", "1",
                     "--alarms.action", "warn")  # fmt: skip
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 3 and "alarm at step 1: evaluation" in done.stderr, done.stderr
    assert [alarm["metric"] for alarm in metrics(tmp_path)[-1]["alarms"]] == ["evaluation"]


@pytest.mark.slow
def test_rollbacks_that_do_not_help_end_the_run(tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    """At a rate of 1 the entropy falls to nothing within four steps, whatever the prompts."""
    flags = rl_flags(tiny_data, tmp_path, sft_checkpoint, "--optimizer.lr", "1", "--steps", "20", "--budget.tokens", "60",
                     "--save-every", "2", "--alarms.action", "rollback", "--alarms.entropy-floor", "0.01",
                     "--alarms.max-rollbacks", "2")  # fmt: skip
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("going back to step") == 2 and "(rollback 2 of at most 2)" in done.stderr
    assert "stopped after 2 rollback(s)" in done.stderr
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # what was rolled back is not there twice
    recorded = [alarm for row in rows for alarm in row.get("alarms", [])]
    assert [alarm["action"] for alarm in recorded] == ["rollback", "rollback", "stop"]
    assert all(alarm["value"] < alarm["bound"] == 0.01 for alarm in recorded)


def spiking_flags(data: Path, out: Path, start: Path, factor: str, *more: str) -> list[str]:
    return rl_flags(data, out, start, "--save-every", "2", "--budget.tokens", "60", "--optimizer.lr", "3e-4", "--steps", "8",
                    "--sampling.max-new-tokens", "12",
                    "--alarms.window", "2", "--alarms.grad-norm-factor", factor, *more)  # fmt: skip


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rollback_goes_on_with_other_prompts_and_a_kill_changes_nothing(
    run_on: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    plain, whole, killed = tmp_path / "plain", tmp_path / "whole", tmp_path / "killed"
    run_on(1, train_here, spiking_flags(tiny_data, plain, sft_checkpoint, "1e9"))
    norms = [row["grad_norm"] for row in metrics(plain)]
    ratios = {step: norms[step - 1] / statistics.median(norms[step - 3 : step - 1]) for step in range(3, 9)}
    spike = max(ratios, key=lambda step: ratios[step])
    factor = str(0.999 * ratios[spike])
    assert float(factor) > 1
    flags = ["--alarms.action", "rollback", "--alarms.max-rollbacks", "99"]
    run_on(1, train_here, spiking_flags(tiny_data, whole, sft_checkpoint, factor, *flags))
    rows = metrics(whole)
    alarms = [alarm for row in rows for alarm in row.get("alarms", [])]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert alarms[0]["step"] == spike and alarms[0]["value"] == norms[spike - 1]
    assert all(alarm["action"] == "rollback" for alarm in alarms)
    back = alarms[0]["rolled_back_to"]
    assert back == (spike - 1) // 2 * 2 and rows[back].get("alarms")
    assert timeless(rows)[:back] == timeless(metrics(plain))[:back]
    if len(alarms) == 1:  # the step after going back saw the prompts that would have come after the spike
        after = {row["prompt_id"] for row in responses(whole, back + 1)}
        assert spike == 8 or after == {row["prompt_id"] for row in responses(plain, spike + 1)}

    arguments = command("megatron_ring.rl", *spiking_flags(tiny_data, killed, sft_checkpoint, factor, *flags))
    process = start(arguments, start_new_session=True, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    for line in process.stderr:
        if "going back to step" in line:
            break
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):  # two steps and a checkpoint are left, which a stalled test may miss
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert timeless(metrics(killed)) == timeless(rows)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_wandb_that_is_not_installed_is_refused(
    fails_with: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path
) -> None:
    flags = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint, "--wandb.project", "p")
    assert "--wandb.project: wandb is not installed" in fails_with(command("megatron_ring.rl", *flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(monkeypatch: pytest.MonkeyPatch, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    """Every step, and again after a stop, in the files that `wandb sync` would send."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    flags = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint, "--wandb.project", "p", "--save-every", "1")
    for steps in ("1", "3"):
        done = run(command("megatron_ring.rl", *flags, "--steps", steps))
        assert done.returncode == 0, done.stderr
    (known,) = {path.name.rsplit("-", 1)[1] for path in (tmp_path / "run" / "wandb").glob("offline-run-*")}
    assert known == json.loads((tmp_path / "run" / "wandb.json").read_text())["id"]
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--data.min-solve-rate 2", "--data.min-solve-rate is 2.0, outside 0..1"),
        ("--data.min-solve-rate 0.6 --data.max-solve-rate 0.4", "--data.min-solve-rate 0.6 is above --data.max-solve-rate"),
        ("--data.drop-after 0", "--data.drop-after is 0"),
        ("--data.curriculum-floor 0", "--data.curriculum-floor is 0.0"),
        ("--evaluation.every 0", "--evaluation.every is 0"),
        ("--evaluation.samples-per-problem 2 --evaluation.temperature 0", "at --evaluation.temperature 0 all would"),
        ("--evaluation.top-p 0", "--evaluation.top-p is 0.0"),
        ("--evaluation.max-new-tokens 0", "--evaluation.max-new-tokens is 0"),
        ("--wandb.name n", "--wandb.name needs --wandb.project"),
        ("--alarms.grad-norm-factor 0.5", "--alarms.grad-norm-factor is 0.5"),
    ],
)
def test_settings_that_cannot_be(flags: str, said: str) -> None:
    nowhere = Path("nowhere")
    with pytest.raises(UserError) as refused:
        parse(RLConfig, "ring-rl", "", rl_flags(nowhere, nowhere, nowhere, *flags.split()))
    assert said in str(refused.value)
