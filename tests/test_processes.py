"""A process that is forked from the server is what the system would have started."""

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
import torch

from tests.processes import environment, forked_python, run, start

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="processes that have seen a GPU are not forked")
STATE = """
import json, os, random, signal, sys, threading
files = sorted(int(name) for name in os.listdir("/proc/self/fd"))
print(json.dumps({
    "arguments": sys.argv, "name": __name__, "file": globals().get("__file__"), "folder": os.getcwd(), "path": sys.path,
    "variables": dict(os.environ), "threads": threading.active_count(), "tasks": len(os.listdir("/proc/self/task")),
    "files": [file for file in files if file < 3 or os.path.exists(f"/proc/self/fd/{file}")],
    "signals": {n: str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP)},
    "leads": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpgid(os.getppid()),
    "streams": [(s.encoding, s.errors, s.line_buffering) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "spec": getattr(sys.modules["__main__"].__spec__, "name", None),
}))
print(random.random(), file=sys.stderr)
"""


def state(arguments: list[str], really: bool, **options: Any) -> dict[str, Any]:
    done = run([sys.executable, *arguments], really=really, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    found["path"] = [place for place in found["path"] if place != os.getcwd()]  # pytest's own
    return found


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
@pytest.mark.parametrize("new_session", [False, True])
def test_it_is_in_the_same_state(tmp_path: Path, how: str, new_session: bool) -> None:
    (tmp_path / "program.py").write_text(STATE)
    begin = {"-c": ["-c", STATE], "-m": ["-m", "program"], "script": [str(tmp_path / "program.py")]}[how]
    options = {"cwd": tmp_path, "env": environment(MINE="ä", PYTHONPATH="/nowhere"), "start_new_session": new_session}
    forked, started = (state([*begin, "--a", "b c"], really, **options) for really in (False, True))
    assert forked == started and forked["tasks"] == 1 and forked["leads"] == new_session


@pytest.mark.parametrize(
    ("program", "status", "out"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit('said')", 1, ""),
        ("import sys; print(sys.stdin.read().upper(), end='')", 0, "GIVEN"),
        ("1 / 0", 1, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, ""),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; print('not lost', flush=True); os._exit(5)", 5, "not lost\n"),
        ("import atexit, threading, time; atexit.register(print, 'last');"
         "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start(); print('first')", 0,
         "first\nthread\nlast\n"),
    ],
)  # fmt: skip
def test_it_ends_the_same_way(program: str, status: int, out: str) -> None:
    for really in (False, True):
        done = run([sys.executable, "-c", program], really=really, input="given")
        assert (done.returncode, done.stdout) == (status, out), (really, done)
        assert ("Error" in done.stderr or "Interrupt" in done.stderr) == ("/ 0" in program or "Keyboard" in program)


@pytest.mark.parametrize("really", [False, True])
def test_signals_reach_it_and_it_does_not_ignore_any(really: bool) -> None:
    program = "import time; print('up', flush=True); time.sleep(60)"
    for number, group in ((signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGKILL, True)):
        process = start([sys.executable, "-c", program], really, start_new_session=True, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "up\n" and process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.wait(30) == -number
        process.stdout.close()


def test_what_would_not_notice_its_environment_is_started_by_the_system() -> None:
    program = "import sys; print(sys.flags.hash_randomization)"
    assert run([sys.executable, "-c", program], env=environment(PYTHONHASHSEED="0")).stdout == "0\n"
    assert run([sys.executable, "-S", "-c", "import sys; print('site' in sys.modules)"]).stdout == "False\n"


def test_ranks_are_as_under_torchrun(tmp_path: Path) -> None:
    """Environment, sessions, the others' end when one fails, and no rank that outlives the launcher."""
    (tmp_path / "ranks.py").write_text(
        "import json, os, sys, time\n"
        "here = {name: os.environ.get(name) for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')}\n"
        "print(json.dumps(here | {'leads': os.getsid(0) == os.getpid()}) + '\\n', end='', flush=True)  # one write\n"
        "open('said-' + here['RANK'], 'w').close()\n"
        "if sys.argv[1] == 'fail' and here['RANK'] == '1':\n"
        "    while not os.path.exists('said-0'): time.sleep(0.01)\n"  # it would be ended before it has said anything
        "    sys.exit(3)\n"
        "if sys.argv[1] != 'end': time.sleep(60)\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole = [
        run([*launcher, "-m", "ranks", "end"], really=really, cwd=tmp_path, env=environment(PYTHONPATH=str(tmp_path)))
        for really in (False, True)
    ]
    assert [done.returncode for done in whole] == [0, 0]
    assert sorted(whole[0].stdout.splitlines()) == sorted(whole[1].stdout.splitlines())
    (tmp_path / "said-0").unlink()
    began = time.monotonic()
    done = run([*launcher, "-m", "ranks", "fail"], cwd=tmp_path)
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 2 and time.monotonic() - began < 50


def test_a_shell_script_has_such_a_python() -> None:
    script = '"$PYTHON" -c "import sys; print(sys.argv[1:]); sys.exit(3)" "a b"; echo $?; exec "$PYTHON" -c "1/0"'
    forked, started = (run(["bash", "-c", script], env=env) for env in (forked_python(), environment(PYTHON=sys.executable)))
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout) == (1, "['a b']\n3\n")
    assert "ZeroDivisionError" in forked.stderr
