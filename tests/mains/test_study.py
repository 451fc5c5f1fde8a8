"""A study of two settings and two seeds as real runs, its numbers worked out again from metrics.jsonl; refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ring.analysis.study import STEADINESS, as_json, by_setting, measure_all, read_cell
from megatron_ring.analysis.study_tables import table
from tests.mains.conftest import command_of_tool, run, start
from tests.processes import forked_python
from tools import study_c3po, study_stages
from tools.study_jobs import Checkpoint, Job, check, is_finished, run_jobs

SEEDS = (1, 2)
SETTINGS = ("c3po", "grpo")


def micro_jobs(out: Path, data: Path, sft: Path) -> list[Job]:
    """Three steps each of two objectives under two seeds."""
    sizes = study_c3po.QUICK
    flags = {"c3po": ("--objective.name", "c3po", *sizes.budget_flags), "grpo": ("--objective.name", "grpo")}
    return [
        study_c3po.rl_job(f"seed-{seed}/{name}", seed, data, out / f"seed-{seed}/{name}", Checkpoint(sft), sizes, 3, 4, (),
                          "--save-every", "1", *flags[name])
        for seed in SEEDS for name in SETTINGS
    ]  # fmt: skip


@pytest.mark.slow
def test_a_micro_study_survives_a_kill_and_its_table_is_right(
    tmp_path: Path, tiny_data: Path, sft_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys; sys.executable = os.environ['PYTHON'];"
        "from pathlib import Path; from tests.mains.test_study import micro_jobs, run_jobs;"
        "out, data, sft = map(Path, sys.argv[1:]); run_jobs(micro_jobs(out, data, sft), out, 2)"
    )
    study = start([sys.executable, "-c", code, str(tmp_path), str(tiny_data), str(sft_run)], env=forked_python(),
                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    first, deadline = tmp_path / "seed-1/c3po/metrics.jsonl", time.monotonic() + 120
    while not first.exists():
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    study.send_signal(signal.SIGTERM)  # ends its jobs as well, in the middle of a run
    study.wait(timeout=30)
    jobs = micro_jobs(tmp_path, tiny_data, sft_run)
    assert not all(is_finished(job, tmp_path) for job in jobs)
    for name, value in forked_python().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", os.environ["PYTHON"])
    run_jobs(jobs, tmp_path, 2)
    assert all(is_finished(job, tmp_path) for job in jobs)

    cells = [read_cell(name, seed, [tmp_path / f"seed-{seed}/{name}"], {}) for name in SETTINGS for seed in SEEDS]
    rows = measure_all(by_setting(cells), STEADINESS)
    numbers = as_json(rows, [("c3po", "grpo")])["trained tokens, CV"]
    by_hand = []
    for seed in SEEDS:
        lines = (tmp_path / f"seed-{seed}/grpo/metrics.jsonl").read_text().splitlines()
        tokens = [json.loads(line)["tokens/trained"] for line in lines]
        assert len(tokens) == 3
        mean = sum(tokens) / 3
        by_hand.append((sum((count - mean) ** 2 for count in tokens) / 3) ** 0.5 / mean)
    assert numbers["settings"]["c3po"]["values"] == [0.0, 0.0]
    assert numbers["settings"]["grpo"]["values"] == pytest.approx(by_hand) and min(by_hand) > 0
    mean, half = sum(by_hand) / 2, 12.7062 * abs(by_hand[0] - by_hand[1]) / 2
    difference = numbers["differences"]["grpo - c3po"]
    assert difference["mean"] == pytest.approx(mean)
    assert difference["interval_95"] == pytest.approx([mean - half, mean + half])
    line = table(rows, SETTINGS, [("c3po", "grpo")]).splitlines()[2]
    assert line.startswith(f"| trained tokens, CV | 0 | {mean:.3f} ± {abs(by_hand[0] - by_hand[1]) / 2**0.5:.3f} | ")


@pytest.mark.parametrize("study", [study_c3po, study_stages])
def test_declared_jobs_fit_together(tmp_path: Path, study: Callable[..., object]) -> None:
    jobs = study.jobs(tmp_path, [1, 2, 3], study.FULL)
    check(jobs)
    written = {job.name for job in jobs}
    for job in jobs:
        for part in job.command:
            if isinstance(part, Checkpoint):
                assert str(part.run.relative_to(tmp_path)) in written
    assert not list(tmp_path.iterdir()), "declaring writes nothing"


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path) -> None:
    done = run(command_of_tool("study.py", "c3po", "--out", str(tmp_path / "s"), "--seeds", "4", "5", "--dry-run"))
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert "missing  seed-4/c3po" in lines and "missing  seed-5/timed-grpo" in lines
    rl = next(line for line in lines if "/seed-4/grpo " in line)
    assert "--objective.name grpo" in rl and "<chosen of" in rl and "--budget" not in rl
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], "there is no spread to compare with"),
        (["--seeds", "1", "1"], "name each once"),
        (["--beside", "0"], "--beside is 0"),
        (["--only", "ppo"], "--only ppo: no job of that name"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path: Path, fails_with: Callable[..., str], flags: list[str], message: str) -> None:
    assert message in fails_with(command_of_tool("study.py", "stages", "--out", str(tmp_path / "s"), *flags))
    assert not (tmp_path / "s").exists()
