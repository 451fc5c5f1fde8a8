"""Control groups, the warm interpreter and its descriptors serve many runs: none finds anything of the one before."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from megatron_ring.rewards.sandbox import Limits, bwrap
from megatron_ring.rewards.sandbox.images import MIB, PYTHON_LIMITS
from megatron_ring.rewards.sandbox.runner import CodeRunner
from megatron_ring.rewards.sandbox.warm import job_spec

pytestmark = pytest.mark.skipif(bwrap.find_problem() is not None, reason="bubblewrap is missing or does not work here")

# What the next run is to find as it always is.
STATE = """
import gc, json, os, random, resource, signal, sys, threading
limits = {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")}
open_files = []
for number in range(1024):
    try: os.fstat(number)
    except OSError: continue
    open_files.append(number)
print(json.dumps({
    "limits": limits, "open": open_files, "files": os.listdir("/tmp"), "pid": os.getpid(), "parent": os.getppid(),
    "signals": {str(n): str(signal.getsignal(n)) for n in (2, 13, 14, 15, 17)}, "threads": threading.active_count(),
    "environment": dict(os.environ), "directory": os.getcwd(), "umask": os.umask(0o22),
    "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "hooks": [str(sys.excepthook), str(threading.excepthook)], "collects": gc.isenabled(),
    "timers": signal.getitimer(signal.ITIMER_REAL), "recursion": sys.getrecursionlimit(),
}, sort_keys=True))
"""
# Room that the next run has only where nothing of this one is charged to it. Children first: watched pages count in each.
ROOM = """
import os, time
children = []
for _ in range(6):
    pid = os.fork()
    if pid == 0:
        time.sleep(0.5)
        os._exit(0)
    children.append(pid)
held = bytearray(700 << 20)
held[::4096] = b"x" * len(held[::4096])
print(sum(os.waitpid(pid, 0)[1] for pid in children))
"""
LEAVING = {
    "daemons": """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        while True: pass
""",
    "a busy processor": """
import time
while time.process_time() < 0.3: pass
""",
    "memory near the limit": """
held = bytearray(960 << 20)
held[::4096] = b"x" * len(held[::4096])
""",
    "memory past the limit": """
import os
for _ in range(5):
    if os.fork() == 0:
        held = bytearray(b"x") * (400 << 20)
        os._exit(0)
""",
    "files": """
for number in range(30): open(str(number), "wb").write(bytes(1 << 20))
""",
    "descriptors": """
import os
while True: os.pipe()
""",
    "signals and limits": """
import gc, os, resource, signal, sys
signal.signal(2, signal.SIG_IGN)
signal.alarm(1)
gc.disable()
os.umask(0o777)
sys.setrecursionlimit(50)
resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
os.register_at_fork(before=lambda: os._exit(3))
""",
    "stopped children": """
import os, signal
for _ in range(4):
    pid = os.fork()
    if pid == 0: signal.pause()
    os.kill(pid, signal.SIGSTOP)
""",
    "a signal to all": """
import os, signal
signal.signal(15, signal.SIG_IGN)
os.kill(-1, signal.SIGTERM)
os.killpg(0, 9)
""",
}


@pytest.fixture(scope="module", params=["groups", "watched"])
def runner(request: pytest.FixtureRequest) -> Iterator[CodeRunner]:
    with CodeRunner(groups=request.param == "groups") as shared:
        if request.param == "groups" and shared.delegation is None:
            pytest.skip("no control groups can be made here")
        yield shared


@pytest.mark.parametrize("name", LEAVING)
def test_the_next_run_finds_nothing(runner: CodeRunner, name: str) -> None:
    limits = PYTHON_LIMITS.within(10.0)
    before = runner.python("script", {"source": STATE}, limits)
    assert before.ok and json.loads(before.stdout)["open"] == [0, 1, 2], before
    runner.python("script", {"source": LEAVING[name]}, PYTHON_LIMITS.within(2.0))
    assert runner.python("script", {"source": STATE}, limits).stdout == before.stdout
    if name not in ("signals and limits", "a signal to all", "descriptors"):
        room = runner.python("script", {"source": ROOM}, limits)
        assert room.ok and room.stdout == b"0\n", room


def test_a_group_that_a_given_up_run_may_still_enter_is_not_used_again() -> None:
    with CodeRunner() as runner:
        runner.python("script", {"source": "print(1)"})
        delegation = runner.delegation
        if delegation is None or runner._warm is None:
            pytest.skip("no control groups can be made here")
        limits = Limits(total_bytes=512 * MIB)  # a kind of group of our own
        spec = job_spec("script", limits, {"source": "import time\ntime.sleep(99)"})  # not over before it is given up
        for _ in range(20):
            null = os.open(os.devnull, os.O_RDWR)
            handle = runner._warm.start(spec, limits, [null] * 3, delegation)
            os.close(null)
            given_up = handle._group
            handle.kill()
            following = delegation.group(limits)
            assert following is not given_up
            delegation.give_back(following)
        used = {runner.python("script", {"source": "print(1)"}).stdout for _ in range(5)}
        assert used == {b"1\n"} and delegation._numbers.__reduce__()[1][0] <= 42  # runs that ended share


FORKS = """
import os, random, threading
done = threading.Event()
threading.Thread(target=done.wait).start()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, f"{random.random()} {threading.active_count()}".encode())
    os._exit(0)
os.waitpid(pid, 0)
number, threads = os.read(read, 99).decode().split()
done.set()
print(threads, float(number) != random.random(), threading.main_thread() is threading.current_thread())
"""


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_modules_hear_of_a_solution_s_own_forks(warm: bool) -> None:
    with CodeRunner(warm=warm) as own:
        result = own.python("script", {"source": FORKS}, PYTHON_LIMITS.within(20.0))
        assert result.stdout == b"1 True True\n", result
