"""Limits of a whole run, with and without control groups; failures of the machine; what is left behind."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards import Reward, RewardPool, ScoreRequest, lane, pool
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.lane import Tally
from megatron_ring.rewards.reasons import MAX_LENGTH, printable_line
from megatron_ring.rewards.sandbox import Limits, boxes, bwrap, cgroups, retry
from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.fresh import Fresh
from megatron_ring.rewards.sandbox.images import LIBRARIES, image_for, python_interpreter
from megatron_ring.rewards.sandbox.retry import steadily
from megatron_ring.rewards.sandbox.runner import CodeRunner
from megatron_ring.rewards.sandbox.side_by_side import first_problem
from megatron_ring.rewards.sandbox.sweep import sweep
from tools.sandbox_programs import PROGRAMS

ROOT = Path(__file__).resolve().parents[2]
sandboxed = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")

# One of each kind; `tools/check_sandbox.py` runs all, beside others.
KINDS = (
    "python: children's memory", "python: shared memory", "python: busy children", "python: sched_idle", "python: vmsplice",
    "python: forged set-up failure", "python: forged SIGKILL", "python: forged report", "python: unlinked files",
    "python: colliding integers in a set", "python: brackets", "python: deep brackets", "python: a long integer",
    "cpp: copies on write", "cpp: pages pinned by pipes", "cpp: inodes", "cpp: forged bubblewrap failure", "cpp: forged 125",
    "cpp: forged SIGKILL", "cpp: descriptors of its launcher", "cpp: aborts", "java: unsafe memory", "java: memory of pid 1",
    "java: other processes", "javascript: buffers", "javascript: priority",
)  # fmt: skip


@pytest.fixture(scope="module", params=["groups", "watched"])
def runner(request: pytest.FixtureRequest) -> Iterator[CodeRunner]:
    with CodeRunner(groups=request.param == "groups") as shared:
        if request.param == "groups" and shared.delegation is None:
            pytest.skip("no control groups can be made here")
        yield shared


@sandboxed
@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_limits_hold_for_the_whole_run(runner: CodeRunner, name: str) -> None:
    program = PROGRAMS[name]
    if program.language != "python":
        try:
            image_for(program.language)
        except UserError as error:
            pytest.skip(str(error))
    answer = {**program.answer, "time_limit": program.seconds, "language": program.language}
    reward = judge(f"```{program.language}\n{program.source}\n```", answer, runner)
    assert reward.value == 0 and re.search(program.held, reward.reason), reward


@sandboxed
@pytest.mark.slow
def test_what_dies_slowly_keeps_nobody_waiting(runner: CodeRunner) -> None:
    program = PROGRAMS["python: slow death"]
    assert "time limit" in judge(program.source, {**program.answer, "time_limit": 1}, runner).reason
    for _ in range(4):
        assert judge("print(input())", {"tests": [{"input": "5", "output": "5"}], "time_limit": 10}, runner).value == 1


@sandboxed
@pytest.mark.slow
def test_the_first_failure_ends_the_others(runner: CodeRunner) -> None:
    def problem_of(index: int) -> str | None:
        source = ("pass", "while True: pass", "import time; time.sleep(0.2); 1 / 0", "import time; time.sleep(99)")[index]
        return runner.python("script", {"source": source}, Limits(seconds=60)).reason or None

    started = time.monotonic()
    assert first_problem(problem_of, 4, 3) == (2, "exit status 1")
    assert time.monotonic() - started < 30
    assert first_problem(lambda index: None, 5, 2) is None and first_problem(lambda index: index, 1, 2) == (0, 0)


@sandboxed
def test_honest_replies_of_any_size_are_read(runner: CodeRunner) -> None:
    tests = {"fn_name": "f", "tests": [{"args": [100_000], "expected": list(range(100_000))}], "time_limit": 30}
    assert judge("def f(n): return list(range(n))", tests, runner).value == 1
    text = "[,{" * 300_000
    tests = {"fn_name": "f", "tests": [{"args": [300_000], "expected": text}], "time_limit": 30}
    assert judge("def f(n): return '[,{' * n", tests, runner).value == 1


@sandboxed
def test_a_hidden_directory_is_empty_and_closed() -> None:
    python, binds = python_interpreter()
    hidden = next(
        str(path) for path in Path("/usr/lib").glob("python3*/") if path.is_dir() and path.name != Path(python).name
    )
    source = f"import os; print(os.listdir({hidden!r})); open({hidden + '/x'!r}, 'w')"
    result = Fresh((python, "-I", "-c", source), (*binds, *LIBRARIES, f"-{hidden}"), Limits(seconds=30)).run()
    assert result.stdout == b"[]\n" and b"Read-only file system" in result.stderr


def test_of_a_python_elsewhere_only_its_library_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("python3.11/os.py", "python3.11/site-packages/numpy/x", "python3.11/site-packages/secret/x", "node/x"):
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).touch()
    (tmp_path / "lib" / "libpython3.11.so.1.0").touch()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.11").touch()
    monkeypatch.setattr("megatron_ring.rewards.sandbox.images.SYSTEM_PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3.11"))
    lib = tmp_path / "lib"
    _, binds = python_interpreter()
    assert binds[len(LIBRARIES) + 1 :] == (
        f"{lib}/libpython3.11.so.1.0",
        f"{lib}/python3.11",
        f"-{lib}/python3.11/site-packages",
        f"{lib}/python3.11/site-packages/numpy",
    )


def test_tries_are_bounded_and_a_starved_run_is_tried_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PAUSES", (0.0, 0.01, 0.02))
    tries: list[bool] = []

    def failing(alone: bool) -> str:
        tries.append(alone)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.raises(MachineFailure, match="BlockingIOError"):
        steadily(failing, bool)
    assert tries == [False] * 4
    assert steadily(lambda alone: "" if alone else "starved", bool) == ""
    assert steadily(lambda alone: f"starved {alone}", bool) == "starved True"


@pytest.mark.slow
def test_an_item_whose_workers_are_killed_has_no_verdict_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []

    class Killed(pool.WorkerProcess):
        """Is killed while it computes."""

        def ask(self, request: ScoreRequest, time_limit: float) -> Any:
            if "int" in request.response:
                killed.append(self.process.pid)
                threading.Timer(0.3, self.process.kill).start()
            return super().ask(request, time_limit)

    monkeypatch.setattr(lane, "_PAUSES", (0.05, 0.1, 0.2))
    monkeypatch.setattr(pool, "WorkerProcess", Killed)
    with RewardPool(workers=1, time_limit=1000) as own:
        own.start(["math"])
        hang = own.submit(ScoreRequest("math", None, r"\boxed{\int_0^1 e^{x^{x^x}} dx}", "x+1"))
        reward = hang.result(timeout=200)
        assert reward.value == 0 and "machine failed" in reward.reason and "machine_failure" in reward.detail
        assert own.machine_failures == 1 and len(set(killed)) == len(killed) == 4
        assert own.score([ScoreRequest("math", None, r"\boxed{1+x}", "x+1")])[0].value == 1


def test_too_many_items_without_a_verdict_are_an_error() -> None:
    tally = Tally()
    outcomes = [tally.without_verdict("no\nmemory") for _ in range(17)]
    assert all(
        isinstance(outcome, Reward) and outcome.detail == {"machine_failure": "no memory"} for outcome in outcomes[:16]
    )
    assert (
        isinstance(outcomes[16], UserError) and "17 of 17" in str(outcomes[16]) and "--rewards.workers" in str(outcomes[16])
    )
    for _ in range(1000):
        tally.scored()
    assert isinstance(tally.without_verdict("again"), Reward)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\r\n\tb\u2028c\x85d", "a b c d"),
        ("\x1b[2J\x07\u202e\ud800", "\ufffd[2J\ufffd\ufffd\ufffd"),
        ("Φ − × 答", "Φ − × 答"),
        ("x" * 10_000, "x" * (MAX_LENGTH - 3) + "..."),
    ],
)
def test_a_reason_is_one_printable_line(text: str, line: str) -> None:
    assert printable_line(text) == line


KILLED = """
import sys, time
from megatron_ring.rewards.sandbox import boxes, cgroups
from megatron_ring.rewards.sandbox.images import Limits
with boxes.box() as box:
    delegation = cgroups.open_delegation()
    group = delegation.group(Limits()) if delegation else None
    print(box, *(group.entries if group else ()), flush=True)
    time.sleep(1000)
"""


def test_what_a_killed_worker_leaves_is_swept_and_nothing_else() -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = [Path(name) for name in process.stdout.readline().split()]
    left = [left[0], *(entry.parent.parent for entry in left[1:])]
    with boxes.box() as ours:
        sweep(1.0)
        assert ours.exists() and all(path.exists() for path in left)
        process.kill()
        process.communicate()
        assert sweep(10.0) and ours.exists() and not any(path.exists() for path in left)
    assert not ours.exists()


def test_groups_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cgroups.NO_GROUPS_VARIABLE, "1")
    assert cgroups.open_delegation() is None
