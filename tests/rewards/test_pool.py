"""The pool with real processes and real kills."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards import Reward, RewardPool, ScoreRequest, unit_conversion, worker_process
from megatron_ring.rewards import pool as pool_module
from megatron_ring.rewards.sandbox.failure import MachineFailure

ROOT = Path(__file__).resolve().parents[2]
MANY = 1000  # items that keep two workers busy for longer than a worker takes to start, several times
HANG = r"\boxed{\int_0^1 e^{x^{x^x}} dx}"  # SymPy looks for it until it is stopped


def request(response: str, answer: object = "x+1", domain: str = "math") -> ScoreRequest:
    return ScoreRequest(domain, None, response, answer)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(workers=2, time_limit=2.0) as shared:
        yield shared


def test_results_come_in_order(pool: RewardPool) -> None:
    requests = [request(rf"\boxed{{x+{i % 3}}}", f"{i % 2}+x") for i in range(40)]
    requests += [request(rf"\boxed{{{i}}}", str(i % 2)) for i in range(10)]
    expected = [float(i % 3 == i % 2) for i in range(40)] + [float(i == i % 2) for i in range(10)]
    assert [reward.value for reward in pool.score(requests)] == expected


@pytest.mark.parametrize(
    "response",
    [HANG, r"\boxed{9^{9^{9^9}}}", r"\boxed{10!!!!}", r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}"],
    ids=["integral", "tower", "!!!!", "("],
)
def test_a_hostile_answer_costs_its_time_limit_and_nobody_else(pool: RewardPool, response: str) -> None:
    good = request(r"\boxed{1+x}")
    pool.score([good, good])  # workers are up
    started = time.monotonic()
    rewards = pool.score([good, request(response), good, good])
    assert [reward.value for reward in rewards] == [1, 0, 1, 1]
    assert time.monotonic() - started < 2 * 2.0 + 20  # on a busy machine it is tried again, by a worker that starts slowly
    assert (rewards[1].reason == "time limit of 2 s exceeded") == (response == HANG)


def test_an_answer_is_not_charged_for_the_library_that_it_needs() -> None:
    """SymPy takes longer to load than the limit, the integral a hundredth of a second."""
    with RewardPool(workers=1, time_limit=0.2) as own:
        own.start(["math"])
        assert own.score([request(r"\boxed{\int_0^1 x^2 dx}", r"\frac{1}{3}")]) == [Reward(1.0, "correct")]


def test_a_library_that_does_not_load_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No reward says that the answer was wrong: it has no verdict, or where nothing is installed the run ends. What needs no
    library is scored."""
    library = tmp_path / "sympy" / "__init__.py"
    library.parent.mkdir()
    library.write_text("raise OSError(5, 'I/O error')")
    monkeypatch.setattr(worker_process, "_PACKAGE_ROOT", f"{tmp_path}{os.pathsep}{ROOT}")
    integral = request(r"\boxed{\int_0^1 x^2 dx}", r"\frac{1}{3}")
    with RewardPool(workers=1, time_limit=5.0) as own:
        own.start(["math"])
        assert own.score([request(r"\boxed{1+x}")])[0].value == 1.0
        assert own.score([integral])[0].detail["machine_failure"] == "a library could not be loaded: OSError"
        assert own.machine_failures == 1
        library.write_text("raise ImportError('no mpmath')")
        with pytest.raises(UserError, match=r"no mpmath.*reinstall"):
            own.score([integral])


def test_a_library_that_hangs_is_not_the_answers_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sympy").mkdir()
    (tmp_path / "sympy" / "__init__.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(worker_process, "_PACKAGE_ROOT", f"{tmp_path}{os.pathsep}{ROOT}")
    worker = worker_process.WorkerProcess("answers", 4 << 30, {})
    try:
        worker.await_ready()
        monkeypatch.setattr(worker_process, "_START_LIMIT", 1.0)
        with pytest.raises(MachineFailure, match="a library was not loaded within 1 s"):
            worker.ask(request(r"\boxed{\int_0^1 x^2 dx}", r"\frac{1}{3}"), 30.0)
    finally:
        worker.kill()


def test_a_long_response_goes_through_a_worker(pool: RewardPool) -> None:
    megabyte = "{ \\boxed{ \ud800 \x00" * 60_000
    rewards = pool.score([request(megabyte + r"}\boxed{7}", "7"), request(megabyte, "7")])
    assert rewards == [Reward(1.0, "correct"), Reward(0.0, "no boxed answer")]


def test_plain_answers_need_no_worker() -> None:
    with RewardPool(workers=2) as idle:
        rewards = idle.score([request(r"\boxed{1}", "1"), request("none", "1"), request(r"\boxed{2}", "1")])
        assert [reward.value for reward in rewards] == [1, 0, 0]
        assert idle.worker_pids == []


def test_scoring_overlaps_other_work(pool: RewardPool) -> None:
    future = pool.submit(request(HANG))
    assert not future.done()
    assert future.result(timeout=60).value == 0


@pytest.mark.slow
def test_a_worker_that_dies_costs_one_item(pool: RewardPool) -> None:
    with RewardPool(workers=1, time_limit=3) as own:
        own.score([request(r"\boxed{1+x}")])
        (pid,) = own.worker_pids
        hanging, good = own.submit(request(HANG)), own.submit(request(r"\boxed{1+x}"))
        time.sleep(0.3)
        os.kill(pid, signal.SIGSEGV)
        assert hanging.result(timeout=60) == Reward(0.0, "time limit of 3 s exceeded")  # by a second worker
        assert good.result(timeout=60).value == 1
        (replacement,) = own.worker_pids
        assert replacement != pid
        os.kill(replacement, signal.SIGKILL)  # while it is idle: no item pays for it
        assert wait_for(lambda: not alive(replacement))
        assert own.score([request(r"\boxed{1+x}")])[0].value == 1


@pytest.mark.slow
def test_kills_at_any_time_lose_and_double_nothing() -> None:
    requests = [request(rf"\boxed{{x^2+{i}x+{i % 3}}}", f"{i}x+x^2+{i % 2}") for i in range(MANY)]
    requests += [ScoreRequest("logic/twenty_four", None, r"\boxed{4*6*1*1}", {"numbers": [1, 1, 4, 6]})] * 50
    expected = [float(i % 3 == i % 2) for i in range(MANY)] + [1.0] * 50
    stop, kills = threading.Event(), 0
    with RewardPool(workers=2, time_limit=60) as own:
        started = time.monotonic()
        own.start(["math"])
        pace = max(0.4, time.monotonic() - started)  # on average a worker lives for half as long again as it starts

        def kill() -> None:
            nonlocal kills
            rng = random.Random(7)
            while not stop.wait(
                rng.uniform(0.0, 3 * pace) if kills > 2 else 0.1
            ):  # on a busy machine the first ones at once
                for pid in own.worker_pids[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            done = []
            futures = [own.submit(item) for item in requests]
            for i, future in enumerate(futures):
                future.add_done_callback(lambda _, i=i: done.append(i))
            rewards = [future.result(timeout=120) for future in futures]
        finally:
            stop.set()
            killer.join()
    # An item may be hit again and again: then it is given up, and says so.
    given_up = [i for i, reward in enumerate(rewards) if "machine failed" in reward.reason]
    assert 2 * len(given_up) <= kills and len(given_up) < 20
    assert all(reward.value == expected[i] for i, reward in enumerate(rewards) if i not in given_up)
    assert sorted(done) == list(range(MANY + 50)) and kills >= 2


def test_submit_waits_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_WAITING", 3)
    with RewardPool(workers=1, time_limit=60) as own:
        own.start(["math"])
        (pid,) = own.worker_pids
        os.kill(pid, signal.SIGSTOP)
        submitted: list[object] = []
        feeder = threading.Thread(target=lambda: submitted.extend(own.submit(request(r"\boxed{1+x}")) for _ in range(8)))
        feeder.start()
        assert not wait_for(lambda: not feeder.is_alive(), seconds=0.7)
        os.kill(pid, signal.SIGCONT)
        feeder.join(timeout=60)
        assert len(submitted) == 8 and all(item.result(timeout=60).value == 1 for item in submitted)  # type: ignore[attr-defined]


def test_no_response_waits_for_a_worker_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker comes up at the start, and in this process what units need, as some answers are judged here. The
    others come up with the first response that needs one, and again where one of these ends."""
    seen: list[str] = []

    class Watched(pool_module.WorkerProcess):
        def __init__(self, *arguments: Any) -> None:
            seen.append("begins")
            self.number = seen.count("begins")
            super().__init__(*arguments)

        def await_ready(self) -> None:
            if self.number == 2:
                self.process.terminate()
            super().await_ready()
            seen.append("ready")

    monkeypatch.setattr(pool_module, "WorkerProcess", Watched)
    with RewardPool(workers=3, time_limit=5.0) as own:
        for _ in range(4):
            own.start(["science"])
        assert unit_conversion.conversion_between.cache_info().currsize > 0
        own.submit(ScoreRequest("science", None, r"\boxed{120 cm}", "1.2 m")).result()  # judged here
        time.sleep(0.3)
        assert seen == ["begins", "ready"]
        own.submit(request(r"\boxed{x^2+\sin(x)}", r"\sin(x)+x^2")).result()
        until = time.monotonic() + 60
        while seen.count("ready") < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(own.worker_pids) == seen.count("ready") == 3


def test_what_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    program = """
from megatron_ring.errors import UserError
from megatron_ring.rewards import RewardPool, ScoreRequest
answer = {"tests": [{"input": "4", "output": "8"}]}
import sys
with RewardPool(workers=1, unsafe_code=sys.argv[1] == "unsafe") as pool:
    try:
        pool.start(["math", "code"])
        print(pool.score([ScoreRequest("code", None, "print(2 * int(input()))", answer)])[0].value)
    except UserError as error:
        print("refused:", error)
"""
    environment = {**os.environ, "PATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    outputs = {}
    for mode in ("safe", "unsafe"):
        command = [sys.executable, "-c", program, mode]
        outputs[mode] = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert outputs["safe"].stdout.startswith("refused:") and "apt-get install bubblewrap" in outputs["safe"].stdout
    assert outputs["unsafe"].stdout == "1.0\n" and "WITHOUT a sandbox" in outputs["unsafe"].stderr


def test_memory_and_core_files_are_limited() -> None:
    with RewardPool(workers=1, time_limit=30, memory_bytes=350 << 20) as own:
        flood = request("x" * (140 << 20))  # as JSON and as text more than the limit
        flooded, good = own.score([flood, request(r"\boxed{1+x}")])
        assert flooded.value == 0 and "process died" in flooded.reason
        assert good.value == 1
        (pid,) = own.worker_pids
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(rf"Max address space +{350 << 20} ", limits)
        assert re.search(r"Max core file size +0 +0 ", limits)


def test_a_stopped_worker_meets_its_deadline_even_while_it_is_sent_to() -> None:
    with RewardPool(workers=1, time_limit=0.8) as own:
        own.score([request(r"\boxed{1+x}")])
        (pid,) = own.worker_pids
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        assert own.score([request("x" * 5_000_000)])[0].reason == "time limit of 0.8 s exceeded"
        assert time.monotonic() - started < 10
        assert not alive(pid)


def test_close_is_prompt_and_leaves_nothing() -> None:
    own = RewardPool(workers=1, time_limit=60)
    own.score([request(r"\boxed{1+x}")])
    running, queued = own.submit(request(HANG)), own.submit(request(HANG))
    assert wait_for(running.running)
    pids = own.worker_pids
    started = time.monotonic()
    own.close()
    own.close()
    assert time.monotonic() - started < 10
    assert pids and not any(alive(pid) for pid in pids)
    assert queued.cancelled()
    with pytest.raises(CancelledError):
        running.result(timeout=1)
    with pytest.raises(RuntimeError, match="closed"):
        own.submit(request(r"\boxed{1+x}"))


def test_wrong_use_is_refused(pool: RewardPool) -> None:
    with pytest.raises(UserError, match="unknown domain 'poetry'"):
        pool.submit(request("x", domain="poetry"))
    with pytest.raises(UserError, match="at least 1"):
        RewardPool(workers=0)
    for limit in (0.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="time limit"):
            RewardPool(time_limit=limit)


def test_verifiers_that_cannot_start_end_the_run() -> None:
    with RewardPool(workers=1, memory_bytes=16 << 20) as own, pytest.raises(UserError, match="could not start"):
        own.score([request(r"\boxed{1+x}")])


ORPHAN_PROGRAM = r"""
import time
from megatron_ring.rewards import RewardPool, ScoreRequest
pool = RewardPool(workers=2, time_limit=1000)
good = ScoreRequest("math", None, r"\boxed{1+x}", "x+1")
while len(pool.worker_pids) < 2:
    pool.score([good] * 4)
pool.submit(ScoreRequest("math", None, r"\boxed{\int_0^1 e^{x^{x^x}} dx}", "x+1"))
time.sleep(0.5)
print(*pool.worker_pids, flush=True)
time.sleep(1000)
"""


def test_no_worker_outlives_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN_PROGRAM], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(alive(pid) for pid in pids)
    finally:
        parent.kill()
        parent.communicate()
    assert wait_for(lambda: not any(alive(pid) for pid in pids), seconds=10)


def test_exit_without_close_does_not_hang() -> None:
    program = ORPHAN_PROGRAM.rsplit("time.sleep", 1)[0]
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert wait_for(lambda: not any(alive(pid) for pid in pids), seconds=10)


RANK_PROGRAM = r"""
INTEGRAL = r"\int_0^1 e^{x^{x^x}} dx"
import threading, torch, torch.distributed as dist
from megatron_ring.rewards import RewardPool, ScoreRequest
dist.init_process_group("gloo", init_method=INIT, rank=RANK, world_size=2)
group = dist.new_group([0, 1])
stop = threading.Event()
noise = threading.Thread(target=lambda: [torch.ones(64, 64).sum() for _ in iter(lambda: stop.wait(0.001), True)])
noise.start()
with RewardPool(workers=1, time_limit=2.0) as pool:
    futures = [pool.submit(ScoreRequest("math", None, r"\boxed{%s}" % a, "x+1")) for a in ("1+x", INTEGRAL, "x")]
    total = torch.ones(1)
    dist.all_reduce(total, group=group)
    values = torch.tensor([future.result().value for future in futures])
dist.all_reduce(values)
stop.set()
noise.join()
assert values.tolist() == [2.0, 0.0, 0.0], values
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_inside_a_distributed_rank_with_threads(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    program = f"RANK, INIT = int(__import__('os').environ['RANK']), 'file://{tmp_path}/store'\n" + RANK_PROGRAM
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors


def test_submitting_from_many_threads(pool: RewardPool) -> None:
    values: list[float] = []

    def work() -> None:
        values.extend(reward.value for reward in pool.score([request(r"\boxed{1+x}")] * 5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [1.0] * 40
