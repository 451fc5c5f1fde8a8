"""The jobs of a study as real processes: order, what runs beside what, failures, kills, and that nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_ring.analysis.study_cost import job_time
from megatron_ring.errors import UserError
from tools.study_jobs import Checkpoint, Job, Manner, check, is_finished, remove_checkpoints, run_jobs

# Writes its start and end into the folder's `times`; sleeps, or fails.
SCRIPT = """
import sys, time
name, out, seconds, status = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
began = time.monotonic()
open(f"{out}/started-{name}", "a").write("x")
time.sleep(seconds)
open(f"{out}/times", "a").write(f"{name} {began} {time.monotonic()}\\n")
print("said by", name)
sys.exit(status)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(SCRIPT)
    return tmp_path


def job(out: Path, name: str, needs: tuple[str, ...] = (), seconds: float = 0, status: int = 0, alone: bool = False) -> Job:
    return Job(name, (str(out / "job.py"), name, str(out), str(seconds), str(status)), needs, alone)


def times(out: Path) -> dict[str, tuple[float, float]]:
    lines = [line.split() for line in (out / "times").read_text().splitlines()]
    return {name: (float(began), float(ended)) for name, began, ended in lines}


def overlap(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


@pytest.mark.slow
def test_needs_come_first_and_no_more_run_beside_than_said(out: Path) -> None:
    # Long enough for two to overlap where a process takes a second to start.
    jobs = [job(out, "a", seconds=3), job(out, "b", ("a",)), job(out, "c", seconds=3), job(out, "d", seconds=0.6)]
    jobs += [job(out, "e", seconds=0.3, alone=True)]
    run_jobs(jobs, out, Manner(2))
    ran = times(out)
    assert ran["b"][0] > ran["a"][1]
    assert overlap(ran["a"], ran["c"])
    most = max(sum(begin <= moment < end for begin, end in ran.values()) for moment, _ in ran.values())
    assert most == 2
    assert not any(overlap(ran["e"], ran[name]) for name in "abcd")


def test_what_has_finished_is_not_run_again(out: Path) -> None:
    jobs = [job(out, "a"), job(out, "b", ("a",))]
    run_jobs(jobs, out, Manner(2))
    run_jobs([*jobs, job(out, "c", ("b",))], out, Manner(2))
    assert [(out / f"started-{name}").read_text() for name in "abc"] == ["x", "x", "x"]
    assert is_finished(jobs[0], out)
    with pytest.raises(UserError, match=r"a/finished.json: the study has changed since; remove .*/a to run it again"):
        run_jobs([job(out, "a", seconds=0.1)], out, Manner(1))
    for broken in ("", "[]", "{}"):
        (out / "a" / "finished.json").write_text(broken)
        with pytest.raises(UserError, match=r"a/finished.json: not the mark of a finished job; remove .*/a to run it again"):
            run_jobs(jobs, out, Manner(1))


def test_a_failure_names_the_log_and_ends_the_others(out: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"bad: exit status 3, see .*logs/bad.log: said by bad"):
        run_jobs([job(out, "long", seconds=60), job(out, "bad", status=3), job(out, "never", ("bad",))], out, Manner(2))
    assert time.monotonic() - began < 30
    assert not (out / "times").read_text().startswith("long") and not (out / "started-never").exists()
    assert not is_finished(job(out, "bad", status=3), out)
    run_jobs([job(out, "bad")], out, Manner(1))  # once mended it runs


@pytest.mark.slow
def test_a_killed_study_leaves_no_second_writer_and_continues(out: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tools.study_jobs import Job, Manner, run_jobs; out = Path(sys.argv[1]);"
        "run_jobs([Job(n, (str(out / 'job.py'), n, str(out), s, '0')) for n, s in (('quick', '0'), ('slow', '3'))], out,"
        " Manner(1))"
    )
    study = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "started-slow").exists():
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    jobs = [job(out, "quick"), job(out, "slow", seconds=3)]
    jobs = [Job(j.name, (*j.command[:3], "0" if j.name == "quick" else "3", "0")) for j in jobs]
    with pytest.raises(UserError, match="a killed one left, runs there"):
        run_jobs(jobs, out, Manner(1))
    while True:  # what was left ends by itself
        try:
            run_jobs(jobs, out, Manner(1))
            break
        except UserError as error:
            assert "runs there" in str(error) and time.monotonic() < deadline
            time.sleep(0.05)
    assert "slow" in (out / "times").read_text()
    assert (out / "started-quick").read_text() == "x" and (out / "started-slow").read_text() == "xx"


def test_a_terminated_study_ends_its_jobs(out: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tools.study_jobs import Job, Manner, run_jobs; out = Path(sys.argv[1]);"
        "run_jobs([Job('slow', (str(out / 'job.py'), 'slow', str(out), '60', '0'))], out, Manner(1))"
    )
    study = subprocess.Popen([sys.executable, "-c", code, str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (out / "started-slow").exists():
        assert study.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    study.terminate()
    study.wait(timeout=20)
    run_jobs([job(out, "other")], out, Manner(1))  # the lock is free: nothing is left
    assert "slow" not in (out / "times").read_text()


def test_checkpoints_are_looked_up_when_the_job_starts(out: Path) -> None:
    run = out / "sft"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("step_9\n")
    (run / "selection.json").write_text(json.dumps({"checkpoint": "step_4"}))
    chosen = Job("rl", ("-m", "megatron_ring.rl", "--init-from", Checkpoint(run, "chosen")))
    assert chosen.arguments()[1:] == ["-m", "megatron_ring.rl", "--init-from", str(run / "checkpoints" / "step_4")]
    ends = [{"step": s, "epoch": s / 2, "checkpoint": f"step_{s}", "validation/entropy": 0.5} for s in (2, 4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ends))
    assert Checkpoint(run, 2).resolve() == str(run / "checkpoints" / "step_4")
    with pytest.raises(UserError, match="no checkpoint at the end of epoch 3"):
        Checkpoint(run, 3).resolve()
    last = Job("rl", ("tools/study.py", Checkpoint(run)))
    assert last.arguments()[1].endswith("/tools/study.py") and last.arguments()[2].endswith("step_9")
    assert last.text() == f"python tools/study.py <last of {run}>"


@pytest.mark.parametrize("names", [["a", "a"], ["b"]])
def test_a_study_that_cannot_be_run_is_refused(out: Path, names: list[str]) -> None:
    with pytest.raises(ValueError, match="named twice, or before"):
        check([job(out, name, ("a",) if name == "b" else ()) for name in names])


def test_a_study_that_keeps_going_leaves_out_what_needs_a_failed_job(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [job(out, "bad", status=3), job(out, "never", ("bad",)), job(out, "good"), job(out, "after", ("good",))]
    with pytest.raises(
        UserError, match=r"^1 of 4 jobs failed; 1 jobs were left out; the same command runs them again. bad: "
    ):
        run_jobs(jobs, out, Manner(1, keep_going=True))
    assert [is_finished(each, out) for each in jobs] == [False, False, True, True]
    assert "study: failed: bad: exit status 3, see " in capfd.readouterr().out


def test_a_job_that_takes_too_long_is_ended_and_times_are_kept(out: Path) -> None:
    with pytest.raises(UserError, match=r"long: ended after 1 seconds, the most that a job may take, see .*long.log: "):
        run_jobs([job(out, "long", seconds=60)], out, Manner(1, limit=1))
    assert "long" not in ((out / "times").read_text() if (out / "times").exists() else "")
    run_jobs([job(out, "a", seconds=0.3)], out, Manner(3))
    time_of = job_time(out / "a")
    assert time_of is not None and 0.3 <= time_of.seconds < 20 and time_of.beside == 3
    assert job_time(out / "long") is None


def test_checkpoints_go_when_no_job_begins_with_them_any_more(out: Path) -> None:
    script = str(out / "job.py")
    first = job(out, "sft")
    second = Job("rl", (script, "rl", str(out), "0", "0", Checkpoint(out / "sft")), ("sft",))
    third = Job("again", (script, "again", str(out), "0", "0", Checkpoint(out / "sft")), ("sft",))
    for name in ("sft", "rl"):
        (out / name / "checkpoints").mkdir(parents=True)
        (out / name / "checkpoints" / "latest").write_text("step_1\n")
    remove_checkpoints([first, second, third], out, {"sft", "rl"})
    assert (out / "sft/checkpoints").exists() and not (out / "rl/checkpoints").exists()
    run_jobs([first, second, third], out, Manner(1, tidy=True))
    assert not (out / "sft/checkpoints").exists() and (out / "sft/finished.json").exists()


def test_what_a_job_outside_of_the_part_begins_with_stays(out: Path) -> None:
    first, script = job(out, "sft"), str(out / "job.py")
    second, third = (
        Job(name, (script, name, str(out), "0", "0", Checkpoint(out / "sft")), ("sft",)) for name in ("rl", "later")
    )
    (out / "sft" / "checkpoints").mkdir(parents=True)
    (out / "sft" / "checkpoints" / "latest").write_text("step_1\n")
    run_jobs([first, second], out, Manner(1, tidy=True), [first, second, third])
    assert (out / "sft/checkpoints/latest").exists()
    run_jobs([first, third], out, Manner(1, tidy=True), [first, second, third])
    assert not (out / "sft/checkpoints").exists()


@pytest.mark.parametrize("flags", [(), ("--no-save-optimizer",)])
def test_a_job_that_saves_weights_alone_begins_anew(out: Path, flags: tuple[str, ...]) -> None:
    again = job(out, "a")
    (out / "a" / "checkpoints").mkdir(parents=True)  # of an attempt that was ended
    run_jobs([Job("a", (*again.command, *flags))], out, Manner(1))
    assert (out / "a/checkpoints").exists() == (not flags)
