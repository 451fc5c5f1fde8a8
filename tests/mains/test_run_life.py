"""The life of a run directory with real runs: runs, kills, edits of `latest`, strays, deletions and other layouts in random
order. No newest checkpoint is lost, and no run begins anew in silence. A run follows at once what was done by hand."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.mains.conftest import command, sft_flags, start

LAST = 14  # steps of the longest run
NUMBERED = re.compile(r"step_(0|[1-9][0-9]*)")


def train_here(arguments: list[str]) -> tuple[str, str]:
    """A run within this process: what it says, and the message where it is refused."""
    from megatron_ring.config.cli import parse
    from megatron_ring.config.sft import SFTConfig
    from megatron_ring.errors import UserError
    from megatron_ring.sft import main

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            main(parse(SFTConfig, "ring-sft", "", arguments))
    except UserError as error:
        return said.getvalue(), str(error)
    return said.getvalue(), ""


def step_of(line: str) -> int:
    """Of a line of metrics; of one that a kill tore more than any."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return LAST + 1


def lines_to(step: int, lines: list[str]) -> list[str]:
    """Of metrics; a run that was set back and then forth lacks those between."""
    return [line for line in lines if step_of(line) <= step]


class Life(RuleBasedStateMachine):
    """`latest`: the checkpoint that a run must go on from, by our own account; None where `latest` names none."""

    run_on: Callable[..., list[Any]]
    data: Path

    def __init__(self) -> None:
        super().__init__()
        self.out = Path(tempfile.mkdtemp()) / "run"
        self.latest: str | None = None
        self.saved = False
        self.strays: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.out.parent)

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    @property
    def whole(self) -> list[str]:
        """By our own account, not by that of the code that is tested."""
        found = [path for path in self.checkpoints.glob("step_*") if NUMBERED.fullmatch(path.name)]
        return sorted((path.name for path in found if (path / "manifest.json").is_file()), key=lambda name: int(name[5:]))

    def lines(self) -> list[str]:
        path = self.out / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def flags(self, last: int, *more: str) -> list[str]:
        return sft_flags(self.data, self.out, "--save-every", "2", "--max-steps", str(last), "--no-async-save", *more)

    def go(self, more: int, tensor: int = 1, *flags: str) -> str:
        """A run of so many further steps, or one that is refused and changes nothing; why it was."""
        begin = int(self.latest[5:]) if self.latest else 0
        last, before, names = min(begin + more, LAST), self.lines(), self.whole
        layout = ["--parallel.tensor", str(tensor)]
        said, refused = self.run_on(tensor, train_here, self.flags(last, *layout, *flags))[0]
        if self.latest is None and (names or (self.saved and before)):
            assert refused and self.lines() == before and self.whole == names, (said, refused)
            assert all(name in refused for name in names[-6:]), refused
            return refused
        assert not refused, refused
        assert ("continuing after step" in said) == bool(begin), said
        kept = lines_to(begin, before)
        assert self.lines()[: len(kept)] == kept
        assert [step_of(line) for line in self.lines()[len(kept) :]] == list(range(begin + 1, last + 1))
        if last > begin:
            self.latest, self.saved = f"step_{last}", True
        ahead = {name for name in names if int(name[5:]) > last}
        assert ahead <= set(self.whole) and self.latest in (None, *self.whole)
        assert self.latest is None or (self.checkpoints / "latest").read_text().strip() == self.latest
        return ""

    def go_or_mend(self) -> None:
        """A run; where it is refused, the command that the refusal names, and a run."""
        mend = self.go(1).partition("to go on from the newest: ")[2]
        if mend:
            subprocess.run(["sh", "-c", mend], check=True)
            self.latest = self.whole[-1]
            assert not self.go(1)

    @initialize()
    def what_people_do_most(self) -> None:
        """Every life begins so: a run, a stray where the next checkpoint is saved, a `latest` that gets lost, and one that
        is set back while few are kept."""
        self.go(2)
        self.stray_where_the_next_is_saved(())
        self.lose_latest()
        self.latest = self.whole[-3]
        (self.checkpoints / "latest").write_text(self.latest)
        self.go(1, 1, "--keep-last", "1")

    @rule(more=st.integers(0, 3), keep=st.sampled_from([None, 1]), tensor=st.sampled_from([1, 1, 2]))
    def run(self, more: int, keep: int | None, tensor: int) -> None:
        self.go(more, tensor, *(["--keep-last", str(keep)] if keep else []))

    @precondition(lambda self: self.latest is not None and int(self.latest[5:]) < LAST - 3)
    @rule(lines=st.integers(1, 3))
    def kill(self, lines: int) -> None:
        """kill -9 when a process has recorded so many further steps."""
        assert self.latest is not None
        begin, before = int(self.latest[5:]), self.lines()
        kept = lines_to(begin, before)
        arguments = command("megatron_ring.sft", *self.flags(LAST))
        process = start(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        place = len(kept) + lines - 1
        while process.poll() is None and self.lines()[place : place + 1] in ([], before[place : place + 1]):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        pointer = (self.checkpoints / "latest").read_text().strip() if not self.is_link else self.latest
        assert pointer in self.whole and int(pointer[5:]) >= begin
        self.latest = pointer
        assert self.lines()[: len(kept)] == kept

    @property
    def is_link(self) -> bool:
        return (self.checkpoints / "latest").is_symlink()

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), link=st.booleans())
    def edit_latest(self, data: st.DataObject, link: bool) -> None:
        pointer = self.checkpoints / "latest"
        others = sorted(path.name for path in self.checkpoints.glob("step_*"))
        name = data.draw(st.sampled_from([*self.whole, *others, "step_99"]))
        pointer.unlink(missing_ok=True)
        if link:
            pointer.symlink_to(name)
        else:
            pointer.write_text(name)
        self.latest = name if name in self.whole else None
        self.go_or_mend()

    @precondition(lambda self: self.whole)
    @rule()
    def lose_latest(self) -> None:
        (self.checkpoints / "latest").unlink(missing_ok=True)
        self.latest = None
        self.go_or_mend()

    @precondition(lambda self: self.whole)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.whole, self.whole[-1]]))
        shutil.rmtree(self.checkpoints / name)
        self.latest = None if name == self.latest else self.latest
        self.go_or_mend()

    @rule(name=st.sampled_from(["step_57.bak", "step_best", "step_8", ".DS_Store"]))
    def stray(self, name: str) -> None:
        if not os.path.lexists(self.checkpoints / name):
            mark = f"stray {len(self.strays)}"
            (self.checkpoints / name).mkdir(parents=True)
            (self.checkpoints / name / "mine").write_text(mark)
            self.strays.add(mark)

    @precondition(lambda self: self.latest is not None and int(self.latest[5:]) < LAST)
    @rule(keep=st.sampled_from([(), ("--keep-last", "1")]))
    def stray_where_the_next_is_saved(self, keep: tuple[str, ...]) -> None:
        assert self.latest is not None
        self.stray(f"step_{int(self.latest[5:]) + 1}")
        self.go(1, 1, *keep)

    @invariant()
    def strays_stay(self) -> None:
        assert self.strays <= {path.read_text() for path in self.checkpoints.glob("*/mine")}


@pytest.mark.slow
@pytest.mark.distributed
def test_the_life_of_a_run_directory(run_on: Any, tiny_data: Path) -> None:
    Life.run_on, Life.data = staticmethod(run_on), tiny_data
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    life = settings(max_examples=3, stateful_step_count=5, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(Life, settings=life)
