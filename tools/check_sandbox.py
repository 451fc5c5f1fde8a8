#!/usr/bin/env python
"""Run programs that try to get past the sandbox's limits, beside honest ones and a process of a trainer's size.

    python tools/check_sandbox.py                        # in a control group of 2.2 GiB and 2 processors, if it can make one
    python tools/check_sandbox.py --no-groups            # its runs are watched instead of put in control groups
    sudo python tools/check_sandbox.py --account 65534   # the group is made by root, the rest is an ordinary user's

Prints one JSON object and exits with 1 where anything was lost: an honest program's reward, the trainer, a limit by more
than 20 %, a program that got what it wanted, or something left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_ring.errors import UserError, run_main
from megatron_ring.rewards import Reward, RewardPool, ScoreRequest
from megatron_ring.rewards.sandbox import Limits, boxes, bwrap, cgroups, usage
from megatron_ring.rewards.sandbox.images import IMAGES, image_for

if TYPE_CHECKING:  # `tools` may be a package of someone else's; a script's own folder is on the path
    from tools.sandbox_programs import PROGRAMS, Program
else:
    from sandbox_programs import PROGRAMS, Program

MIB = 1 << 20
TOLERANCE = 1.2
BESIDE = 200 * MIB  # the pool's workers and the honest programs
HONEST = {
    "short": ("a, b = map(int, input().split())\nprint(a * b)", "6 7", "42"),
    "seconds of work": (
        "import time\nk = 0\nwhile time.process_time() < 1.5: k += 1\nprint(int(input()) + 1)",
        "6",
        "7",
    ),
}
TRAINER = """
import sys, time
held = bytearray(int(sys.argv[1]) << 20)
for k in range(0, len(held), 4096): held[k] = 1
print("ready", flush=True)
while True: time.sleep(1)
"""


@dataclass(frozen=True)
class CheckOptions:
    """What is run, and in what.

    Attributes:
        memory_gib: memory of the control group that stands for a container; 0: none is made.
        cpus: its processors.
        trainer_mib: size of the process beside them.
        account: number of the user that runs all this, once the control group is made; only for root.
        groups: runs get control groups where that is possible.
        only: programs whose name matches this regular expression.
        workers: workers of the pool.
    """

    memory_gib: float = 2.2
    cpus: float = 2.0
    trainer_mib: int = 700
    account: int | None = None
    groups: bool = True
    only: str = ""
    workers: int = 2


@dataclass
class Findings:
    """What was seen."""

    problems: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    honest: dict[str, list[Reward]] = field(default_factory=lambda: {name: [] for name in HONEST})


@contextmanager
def container(options: CheckOptions) -> Iterator[str]:
    """This process in a control group of its own, as far as it may make one; what came of that, in words."""
    delegation = cgroups.open_delegation() if options.memory_gib else None
    if delegation is None:
        yield "none"
        return
    group = delegation.group(Limits(total_bytes=int(options.memory_gib * 1024 * MIB), processes=2000, cpus=options.cpus))
    own = [str(place[1] / "cgroup.procs") for place in cgroups.own_groups().values()]
    for entry in group.entries:
        Path(entry).write_text("0")
    try:
        yield f"{options.memory_gib:g} GiB, {options.cpus:g} processors"
    finally:
        for entry in own:
            with contextlib.suppress(OSError):
                Path(entry).write_text("0")
        delegation.give_back(group)
        delegation.close()


class Monitor:
    """Samples what this process's descendants hold; the most of each program is compared with its limit."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self.memory = self.processes = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stop.wait(0.03):
            pids = usage.descendants(os.getpid())
            self.memory = max(self.memory, usage.memory_bytes(pids, sockets=False))
            self.processes = max(self.processes, len(pids))

    def reset(self) -> tuple[int, int]:
        """The most since the last call."""
        found = self.memory, self.processes
        self.memory = self.processes = 0
        return found

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


class Neighbours:
    """Honest programs, scored by the same pool all the time."""

    def __init__(self, pool: RewardPool, findings: Findings) -> None:
        self._pool, self._findings, self._stop = pool, findings, threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(name,), daemon=True) for name in HONEST]
        for thread in self._threads:
            thread.start()

    def _work(self, name: str) -> None:
        source, given, expected = HONEST[name]
        answer = {"tests": [{"input": given, "output": expected}], "time_limit": 6}
        while not self._stop.wait(0.3):
            try:
                reward = self._pool.submit(ScoreRequest("code", None, f"```python\n{source}\n```", answer)).result()
            except Exception as error:  # what a trainer would see
                self._findings.problems.append(f"{name}: raised {type(error).__name__}: {error}")
                return
            self._findings.honest[name].append(reward)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def check(name: str, program: Program, pool: RewardPool, monitor: Monitor, findings: Findings, beside: int) -> None:
    """One program: its verdict, its time, its memory."""
    answer = {**program.answer, "time_limit": program.seconds, "language": program.language}
    monitor.reset()
    started = time.monotonic()
    reward = pool.submit(ScoreRequest("code", None, f"```{program.language}\n{program.source}\n```", answer)).result()
    seconds = time.monotonic() - started
    memory, processes = monitor.reset()
    row = {
        "name": name,
        "reason": reward.reason,
        "seconds": round(seconds, 1),
        "mib": max(0, memory - beside) // MIB,
        "processes": processes,
    }
    findings.rows.append(row)
    print(json.dumps(row), file=sys.stderr, flush=True)
    limits = IMAGES[program.language].limits if program.language in IMAGES else Limits()
    if reward.value != 0 or "machine_failure" in reward.detail or not re.search(program.held, reward.reason):
        findings.problems.append(f"{name}: {reward.value:g}, {reward.reason}")
    if not reward.reason.isprintable():
        findings.problems.append(f"{name}: a reason that is no printable line")
    if memory - beside > TOLERANCE * limits.total_bytes + BESIDE:
        findings.problems.append(f"{name}: {(memory - beside) // MIB} MiB, limit {limits.total_bytes // MIB}")
    if program.soon is not None and seconds > program.soon:
        findings.problems.append(f"{name}: {seconds:.1f} s for its verdict, expected within {program.soon:g}")


def run(options: CheckOptions) -> Findings:
    """All programs, one after another, each beside the honest ones."""
    findings = Findings()
    before = _left()
    with ExitStack() as stack:
        trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(options.trainer_mib)], stdout=subprocess.PIPE)
        stack.callback(trainer.wait)
        stack.callback(trainer.kill)
        assert trainer.stdout is not None
        trainer.stdout.readline()
        pool = stack.enter_context(RewardPool(options.workers))
        pool.start(["code"])
        monitor = Monitor()
        stack.callback(monitor.close)
        neighbours = Neighbours(pool, findings)
        time.sleep(3)
        beside, _ = monitor.reset()
        for name, program in PROGRAMS.items():
            if re.search(options.only, name) and _available(program.language):
                check(name, program, pool, monitor, findings, beside)
        neighbours.close()
        if trainer.poll() is not None:
            findings.problems.append(f"the trainer died with {trainer.returncode}")
        if pool.machine_failures:
            findings.problems.append(f"{pool.machine_failures} programs without a verdict")
    for name, rewards in findings.honest.items():
        lost = [reward.reason for reward in rewards if reward.value != 1]
        if lost or not rewards:
            findings.problems.append(f"honest program {name!r}: {len(lost)} of {len(rewards)} lost: {lost[:3]}")
    for thing in sorted(_left() - before):
        findings.problems.append(f"left behind: {thing}")
    return findings


def _available(language: str) -> bool:
    try:
        return language == "python" or bool(image_for(language))
    except UserError:
        return False


def _left() -> set[str]:
    """Processes of ours that are there, and directories and control groups that nobody holds."""
    found = {f"process {pid}" for pid in usage.descendants(os.getpid())[1:]}
    folders = [Path(tempfile.gettempdir()), *(own for _, own in cgroups.own_groups().values())]
    for path in (path for folder in folders for path in folder.glob("megatron-ring-*")):
        with contextlib.suppress(OSError):  # another pool's, which is alive
            os.close(boxes.lock_folder(path))
            found.add(str(path))
    return found


def main() -> None:
    """Command line."""
    options = tyro.cli(CheckOptions)
    if problem := bwrap.find_problem():
        raise UserError(f"{problem}: {bwrap.HELP}")
    with container(options) as inside:
        if options.account is not None:
            os.setgroups([])
            os.setgid(options.account)
            os.setuid(options.account)
            if not os.access(sys.executable, os.X_OK):  # an exception would end in a group that only root may leave
                said = f"--account {options.account}: it may not run {sys.executable}, use a Python outside of a closed home"
                print(f"error: {said}", file=sys.stderr, flush=True)
                os._exit(2)
        if not options.groups:
            os.environ[cgroups.NO_GROUPS_VARIABLE] = "1"
        delegation = cgroups.open_delegation()
        bounded = delegation is not None
        if delegation is not None:
            delegation.close()
        findings = run(options)
        report = {
            "container": inside,
            "user": os.geteuid(),
            "runs": "in control groups" if bounded else "watched",
            "programs": len(findings.rows),
            "trainer_mib": options.trainer_mib,
            "honest": {name: len(rewards) for name, rewards in findings.honest.items()},
            "most_mib": max((row["mib"] for row in findings.rows), default=0),
            "longest_seconds": max((row["seconds"] for row in findings.rows), default=0),
            "problems": findings.problems,
        }
        print(json.dumps(report, indent=1), flush=True)
        if options.account is not None:  # it may not leave the group that root made: root's part is over with this process
            os._exit(1 if findings.problems else 0)
    if findings.problems:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
