"""A study of two settings and two seeds as real runs, its numbers worked out again from metrics.jsonl; refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.analysis.study import STEADINESS, as_json, by_setting, measure_all, read_cell
from megatron_ring.analysis.study_tables import table
from megatron_ring.config.cli import parse
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import UserError
from tests.mains.conftest import command_of_tool, run, start
from tests.processes import forked_python
from tools import study as study_tool
from tools import study_c3po, study_epochs, study_fp8, study_stages
from tools.make_worked_gym_data import WorkedGymOptions
from tools.select_checkpoint import Flags as SelectFlags
from tools.study_edition import Edition
from tools.study_jobs import Checkpoint, Job, Manner, check, is_finished, run_jobs

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
        "import sys;"
        "from pathlib import Path; from tests.mains.test_study import Manner, micro_jobs, run_jobs;"
        "out, data, sft = map(Path, sys.argv[1:]); run_jobs(micro_jobs(out, data, sft), out, Manner(2))"
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
    run_jobs(jobs, tmp_path, Manner(2))
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


@pytest.mark.slow
def test_a_tiny_study_of_epochs_survives_a_kill_and_runs_nothing_twice(tmp_path: Path) -> None:
    """One seed, two numbers of epochs, three steps of RL, through the command line; killed, continued, and asked again."""
    out, docs = tmp_path / "out", tmp_path / "docs"
    flags = ["epochs", "--out", str(out), "--docs", str(docs), "--seeds", "5", "--quick", "--epochs", "2", "1"]
    environment = forked_python()
    command = command_of_tool("study.py", *flags)
    study = start(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first, deadline = out / "seed-5/rl-1/metrics.jsonl", time.monotonic() + 240
    while not first.exists():
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    study.send_signal(signal.SIGTERM)
    study.wait(timeout=30)
    done = run(command, env=environment)
    assert done.returncode == 0, done.stderr
    assert "9/9" in done.stdout and "seed-5/sft-1 (" not in done.stdout  # it had finished before the kill
    numbers = json.loads((docs / "study-epochs.json").read_text())
    rows = [json.loads(line) for line in (out / "seed-5/rl-2/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and ["evaluation/pass_at_1" in row for row in rows] == [
        False,
        True,
        True,
    ]
    two = numbers["starts"][1]
    assert (two["epochs"], two["last"], two["rl_tokens"]) == (2, rows[2]["evaluation/pass_at_1"], 600)
    assert two["before"] == json.loads((out / "seed-5/before-2/result.json").read_text())["pass_at_1"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    gathered = run([*command, "--gather"], env=environment)
    again = run(command, env=environment)
    assert gathered.returncode == again.returncode == 0 and "study:" not in again.stdout + gathered.stdout
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("metrics.jsonl")}
    assert json.loads((docs / "study-epochs.json").read_text()) == numbers


@pytest.mark.parametrize("study", [study_c3po, study_fp8, study_stages, study_epochs])
@pytest.mark.parametrize("one_run", [False, True])
def test_declared_jobs_fit_together(tmp_path: Path, study: Any, one_run: bool) -> None:
    sizes = study.FULL
    if study is study_epochs:
        sizes = replace(sizes, one_run=one_run)
    jobs = study.jobs(tmp_path, [1, 2, 3], sizes)
    check(jobs)
    written = {job.name for job in jobs}
    for job in jobs:
        for part in job.command:
            if isinstance(part, Checkpoint):
                assert str(part.run.relative_to(tmp_path)) in written
    assert not list(tmp_path.iterdir()), "declaring writes nothing"


@pytest.mark.parametrize("study", [study_c3po, study_fp8, study_stages, study_epochs])
def test_from_a_pretrained_start_every_command_is_one_that_its_main_takes(tmp_path: Path, study: Any) -> None:
    """The jobs are those of the CPU's edition; model, tokenizer, data and sizes are others. RL of the studies of C3PO and of
    FP8 evaluates itself."""
    start = tmp_path / "start"
    sizes = replace(study.GPU, edition=Edition(start))
    if study is study_epochs:
        sizes = replace(sizes, counts=study.FULL.counts)
    jobs, usual = study.jobs(tmp_path, [1], sizes), study.jobs(tmp_path, [1], study.FULL)
    kept = [job for job in usual if study not in (study_c3po, study_fp8) or not job.name.endswith("-after")]
    assert [(job.name, job.needs) for job in jobs] == [(job.name, job.needs) for job in kept]
    mains = {"megatron_ring.sft": SFTConfig, "megatron_ring.rl": RLConfig, "megatron_ring.evaluate": EvaluateConfig}
    tools = {"tools/make_worked_gym_data.py": WorkedGymOptions, "tools/select_checkpoint.py": SelectFlags}
    for job in jobs:
        first, *rest = (str(part) for part in job.command)
        kind, words = (mains[rest[0]], rest[1:]) if first == "-m" else (tools.get(first), rest)
        if kind is None:
            assert first == "tools/study_result.py"
            continue
        given = parse(kind, first, "", words)
        if isinstance(given, (SFTConfig, RLConfig)):
            assert given.data.tokenizer == start and (given.init_from == start) == (
                job.name == "seed-1/sft" or "sft-" in job.name
            )
    assert not list(tmp_path.iterdir())


def test_from_a_tuned_start_and_a_pool_nothing_is_fine_tuned_and_rates_decide(tmp_path: Path) -> None:
    edition = Edition(tmp_path / "start", tmp_path / "pool", tmp_path / "tuned")
    sizes = replace(study_c3po.GPU, edition=edition, settings=("c3po", "grpo"))
    jobs = {job.name: job.text() for job in study_c3po.jobs(tmp_path, [1], sizes)}
    assert list(jobs) == [f"seed-1/{name}" for name in ("data", "before-chosen", "c3po", "grpo")]
    assert f"tools/draw_worked_gym_data.py --pool {tmp_path}/pool " in jobs["seed-1/data"]
    for name in ("c3po", "grpo"):
        rl = jobs[f"seed-1/{name}"]
        assert f"--init-from {tmp_path}/tuned " in rl and f"--data.tokenizer {tmp_path}/start " in rl
        assert "--data.min-solve-rate 0.1 --data.max-solve-rate 0.9" in rl and "--evaluation.every" in rl
    stages = study_stages.jobs(tmp_path, [1], replace(study_stages.GPU, edition=edition))
    assert "seed-1/sft" not in [job.name for job in stages] and stages[0].command[-3] == "--parts"
    shared = study_epochs.jobs(tmp_path, [1, 2], replace(study_epochs.GPU, edition=edition, counts=(8, 1)))
    starts = [job.name for job in shared if "/sft-" in job.name]
    assert starts == ["seed-1/sft-8", "seed-2/sft-8", "seed-1/sft-1", "seed-2/sft-1"]  # whole columns first


def test_what_fp8_has_in_common_with_c3po_is_run_once(tmp_path: Path) -> None:
    """In one folder a job of both studies is the same one. The other runs differ from C3PO's by their flags alone."""
    edition = Edition(tmp_path / "start", tmp_path / "pool", tmp_path / "tuned")
    for sizes in (replace(study_fp8.GPU, edition=edition), study_fp8.FULL):
        known = {job.name: job for job in study_c3po.jobs(tmp_path, [1], sizes)}
        jobs = {job.name: job for job in study_fp8.jobs(tmp_path, [1], sizes)}
        assert [job for name, job in jobs.items() if "fp8" not in name] == [known[name] for name in jobs if name in known]
        assert {"seed-1/data", "seed-1/before-chosen", "seed-1/c3po"} <= known.keys() & jobs.keys()
        for name in ("fp8", "fp8-recomputed", "fp8-icepop"):
            own, usual = jobs[f"seed-1/{name}"], known["seed-1/c3po"]
            more = [part for part in own.text().split() if part not in usual.text().split()]
            assert more[:1] == [f"{tmp_path}/seed-1/{name}"] and "fp8" in more
            assert ("recomputed" in more) == (name != "fp8") and ("icepop" in more) == (name == "fp8-icepop")
    asked = study_fp8.jobs(tmp_path, [1], replace(sizes, settings=("bf16", "fp8-icepop")))
    runs = [job.name for job in asked if "megatron_ring.rl" in job.command]
    assert runs == ["seed-1/c3po", "seed-1/fp8-icepop"]


def test_epochs_have_a_run_each_or_share_one(tmp_path: Path) -> None:
    own = {job.name: job for job in study_epochs.jobs(tmp_path, [1], study_epochs.FULL)}
    shared = {job.name: job for job in study_epochs.jobs(tmp_path, [1], replace(study_epochs.FULL, one_run=True))}
    assert len(own) == 1 + 5 * 4 and len(shared) == 2 + 5 * 3
    assert "--epochs 4 " in own["seed-1/sft-4"].text() and f"<last of {tmp_path}/seed-1/sft-4>" in own["seed-1/rl-4"].text()
    assert (
        "--epochs 16 " in shared["seed-1/sft"].text()
        and f"<epoch 4 of {tmp_path}/seed-1/sft>" in shared["seed-1/rl-4"].text()
    )
    assert "--one-run" in shared["seed-1/result-4"].command and "--one-run" not in own["seed-1/result-4"].command


def test_a_dry_run_lists_and_writes_nothing(tmp_path: Path) -> None:
    done = run(command_of_tool("study.py", "c3po", "--out", str(tmp_path / "s"), "--seeds", "4", "5", "--dry-run"))
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert "missing  seed-4/c3po" in lines and "missing  seed-5/timed-grpo" in lines
    rl = next(line for line in lines if "/seed-4/grpo " in line)
    assert "--objective.name grpo" in rl and "<chosen of" in rl and "--budget" not in rl
    assert not os.listdir(tmp_path)


def test_a_whole_name_is_one_job_and_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {}
    for only in ("seed-1/result-1", "/result-1"):
        study_tool.main(study_tool.Flags(name="epochs", out=tmp_path, only=only, dry_run=True))
        listed[only] = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("missing")}
    one = {f"seed-1/{name}" for name in ("data", "sft-1", "before-1", "rl-1", "result-1")}
    assert listed["seed-1/result-1"] == one and one | {"seed-3/result-16"} < listed["/result-1"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], "there is no spread to compare with"),
        (["--seeds", "1", "1"], "name each once"),
        (["--beside", "0"], "--beside is 0"),
        (["--only", "ppo"], "--only ppo: no job of that name"),
        (["--epochs", "1", "2"], "--epochs belongs to the study of epochs"),
        (["--one-run"], "--one-run belongs to the study of epochs"),
        (["--gather"], "no seed 1, 2, 3 with all of data, before, math, math-after, applied, applied-after, mix, mix-after"),
        (["--partial"], "--partial belongs to --gather"),
        (["--settings", "grpo"], "--settings belongs to the studies c3po and fp8"),
        (["--pool", "somewhere"], "--pool belongs to a study with --start"),
        (["--start", "somewhere"], "--start somewhere: no such folder"),
        (["--job-minutes", "0"], "--job-minutes is 0"),
        (["--page", "a/b"], "--page a/b: give a name without folders"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path: Path, fails_with: Callable[..., str], flags: list[str], message: str) -> None:
    assert message in fails_with(command_of_tool("study.py", "stages", "--out", str(tmp_path / "s"), *flags))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"settings": ("c3po", "fp8")}, "--settings c3po: use some of bf16, fp8, fp8-recomputed, fp8-icepop"),
        ({"name": "c3po", "gather": ()}, "--gather belongs to the study of epochs, to fp8, to stages, or to"),
        ({"settings": ("fp8",)}, "--settings fp8: name 2 or more, each once"),
        ({"settings": ("fp8", "fp8")}, "--settings fp8 fp8: name 2 or more, each once"),
        ({"seeds": (1,)}, "--seeds: give 2 to"),
        ({"name": "c3po", "settings": ("timed-c3po", "timed-grpo")}, "--settings timed-c3po: use some of c3po, grpo"),
    ],
)
def test_mistakes_in_a_study_of_a_part(tmp_path: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        study_tool.Flags(**{"name": "fp8", "out": tmp_path, **flags})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "2"], "--epochs: give 2 or more"),
        (["--epochs", "2", "2"], "name each once"),
        (["--epochs", "0", "2"], "1 or more"),
        (["--every", "0"], "--every is 0"),
        (["--gather", "--dry-run"], "--gather runs nothing"),
        (["--gather", "nowhere"], "no result of a start"),
        (["--start", "tests", "--tuned", "tests"], "--tuned belongs to the studies c3po, fp8 and stages"),
    ],
)
def test_mistakes_in_the_study_of_epochs(
    tmp_path: Path, fails_with: Callable[..., str], flags: list[str], message: str
) -> None:
    assert message in fails_with(command_of_tool("study.py", "epochs", "--out", str(tmp_path / "s"), *flags))
    assert not (tmp_path / "s").exists()
