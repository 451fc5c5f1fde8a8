"""Hostile programs, really run: none escapes, hangs past its limit, earns a reward or harms its neighbour."""

from __future__ import annotations

import platform
import re
import threading
import time
from collections.abc import Iterator

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards.code import judge
from megatron_ring.rewards.sandbox import bwrap
from megatron_ring.rewards.sandbox.images import image_for
from megatron_ring.rewards.sandbox.runner import CodeRunner
from megatron_ring.rewards.sandbox.side_by_side import Stopped
from tests.rewards.hostile import other_programs, python_programs

X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls by their x86_64 numbers")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here"),
]

SLACK = 8.0  # seconds; for a busy machine, and to tell a program that is ended from one that is not
COMPILE_LIMIT = 60.0
GOOD = "import time\na, b = map(int, input().split())\nopen('mine', 'x').write('1')\ntime.sleep(0.05)\nprint(a * b)\n"


@pytest.fixture(scope="module")
def runner() -> Iterator[CodeRunner]:
    with CodeRunner() as shared:
        yield shared


@pytest.fixture(scope="module", autouse=True)
def neighbour(runner: CodeRunner) -> Iterator[None]:
    """An honest solution that runs beside all others, in the same warm interpreter, and must never lose."""
    rewards, stop = [], threading.Event()

    def work() -> None:
        while not stop.wait(0.2):
            tests = {"tests": [{"input": "6 7", "output": "42"}], "time_limit": 30}
            rewards.append(judge(GOOD, tests, runner))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()
    assert rewards and all(reward.value == 1 for reward in rewards), [r for r in rewards if r.value != 1]


def attack(runner: CodeRunner, language: str, source: str, seconds: float, reason: str, slack: float = SLACK) -> None:
    """The attack fails for the right reason, within its time."""
    tests = {"tests": [{"input": "", "output": "ESCAPED"}], "time_limit": seconds, "language": language}
    started = time.monotonic()
    reward = judge(source, tests, runner)
    assert time.monotonic() - started < seconds + slack
    assert reward.value == 0 and re.search(reason, reward.reason), reward


@pytest.mark.parametrize("name", python_programs.PROGRAMS)
def test_hostile_python(runner: CodeRunner, name: str) -> None:
    reason, seconds, source = python_programs.PROGRAMS[name]
    attack(runner, "python", source, seconds, reason)


@pytest.mark.parametrize("name", other_programs.PROGRAMS)
def test_hostile_programs_in_other_languages(runner: CodeRunner, name: str) -> None:
    language, reason, seconds, source = other_programs.PROGRAMS[name]
    try:
        image_for(language)
    except UserError as error:
        pytest.skip(str(error))
    attack(runner, language, source, seconds, reason, SLACK + COMPILE_LIMIT)


@pytest.mark.parametrize("name", other_programs.UNIT_ATTACKS)
def test_unit_tests_cannot_be_fooled(runner: CodeRunner, name: str) -> None:
    tests = "assert answer(3) == 40_503\nassert answer(4) == 40_504\nassert answer('a') == 'x'\n"
    started = time.monotonic()
    reward = judge(other_programs.UNIT_ATTACKS[name], {"tests": tests, "time_limit": 2}, runner)
    assert time.monotonic() - started < 2 + SLACK
    assert reward.value == 0 and reward.reason


@X86
def test_runs_share_no_queues_or_names(runner: CodeRunner) -> None:
    """One network, ipc and host name space serves all warm runs: the filter must refuse every way through them."""
    for number, arguments in ((240, 4), (29, 3), (64, 3), (68, 2), (170, 2), (41, 3), (319, 2)):
        call = ", ".join(["0"] * arguments)
        source = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nr = libc.syscall({number}, {call})\n"
        attack(
            runner, "python", source + "print('held' if r == -1 and ctypes.get_errno() == 1 else 'ESCAPED')", 10.0, "held"
        )


LEAVE = """
import builtins, os, math, random, sys, json
for folder in ("/tmp", "/dev", "/guest", "/", "/proc", "/usr/lib"):
    try: open(folder + "/left", "w").write("ESCAPED")
    except OSError: pass
builtins.left = math.left = sys.left = "ESCAPED"
builtins.print = lambda *a, **k: os.write(1, b"ESCAPED")
json.dumps = math.gcd = lambda *a, **k: "ESCAPED"
random.seed(0)
os.environ["LEFT"] = "ESCAPED"
os.umask(0o777)
if os.fork() == 0:
    os.setsid()
    while True: open("/tmp/left", "w").write("ESCAPED")
"""
FIND = """
import builtins, os, math, random, sys, json
found = [f for f in ("/tmp", "/dev", "/guest", "/", "/proc", "/usr/lib") if os.path.exists(f + "/left")]
found += [m for m in (builtins, math, sys) if hasattr(m, "left")]
found += [1 for _ in range(1) if "LEFT" in os.environ or math.gcd(4, 6) != 2 or json.dumps(1) != "1" or os.umask(0) == 0o777]
print("ESCAPED" if found else "held")
"""


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_nothing_is_left_for_the_next_run(runner: CodeRunner, warm: bool) -> None:
    if warm:
        attack(runner, "python", LEAVE, 10.0, "printed ''")
        attack(runner, "python", FIND, 10.0, "held")
        return
    with CodeRunner(warm=False) as fresh:
        attack(fresh, "python", LEAVE, 10.0, "printed ''")
        attack(fresh, "python", FIND, 10.0, "held")


def test_runs_do_not_share_their_random_state(runner: CodeRunner) -> None:
    results = {runner.python("script", {"source": "import random; print(random.random())"}).stdout for _ in range(3)}
    assert len(results) == 3


def test_closing_the_runner_ends_its_runs() -> None:
    runner = CodeRunner()
    assert judge("print(1)", {"tests": [{"input": "", "output": "1"}]}, runner).value == 1
    ended: list[bool] = []
    waiting = {"tests": [{"input": "", "output": "1"}], "time_limit": 30}

    def work() -> None:
        with pytest.raises(Stopped):
            judge("import time\ntime.sleep(60)", waiting, runner)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    runner.close()
    thread.join(timeout=10)
    assert ended == [True]


def test_the_zygote_is_replaced_when_it_dies(runner: CodeRunner) -> None:
    with CodeRunner() as own:
        tests = {"tests": [{"input": "", "output": "1"}]}
        assert judge("print(1)", tests, own).value == 1
        assert own._warm is not None and own._warm._process is not None
        own._warm._process.kill()
        own._warm._process.wait()
        assert judge("print(1)", tests, own).value == 1
