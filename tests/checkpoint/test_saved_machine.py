"""A run directory's checkpoints over its life: saves, kills, edits by hand and other layouts in random order, with the code
that saves and loads. A run goes on from what `latest` names, with the content that was last saved under that name.

What was done by hand is followed by a run at once, so that no later rule hides what it led to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import threading
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

from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.errors import UserError
from tests.checkpoint.test_convert import TINY
from tests.checkpoint.test_saving import trainer_for


class KilledError(BaseException):
    """Ends a thread where it is, as a kill would: nothing catches it."""


def kill_at(calls: int) -> Callable[..., None]:
    """A profile function that lets a thread go no further than its so-many-th Python call."""
    left = calls

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left < 0:
            raise KilledError

    return count


def run_once(folder: Path, tensor: int, steps: list[int], keep: int | None, number: int, calls: int | None) -> Any:
    """Go on from the last checkpoint and save after each of so many further steps. Weights hold the number of the save.

    Args:
        number: of the first save.
        calls: the last save is killed behind so many Python calls of its thread.

    Returns:
        step and number that it went on from, or the message where it was refused.
    """
    from megatron_ring.checkpoint.folder import latest_checkpoint, tidy
    from megatron_ring.checkpoint.loading import load_checkpoint
    from megatron_ring.checkpoint.saving import CheckpointSaver
    from megatron_ring.parallel import collectives

    trainer, here = trainer_for(ParallelConfig(tensor=tensor), TINY)
    weight = trainer.model.decoder.final_layernorm.weight
    done, found = 0, 0
    try:
        if here.is_main:
            tidy(folder)
        last = collectives.from_main(lambda: latest_checkpoint(folder))
        if last is not None:
            done, extra = load_checkpoint(last, trainer.model, here, trainer.optimizer)
            found = extra["number"]
            assert (weight == found).all(), (weight, found)
    except UserError as error:
        return str(error)
    began = (done, found)
    saver = CheckpointSaver(folder, here, keep)
    for place, more in enumerate(steps):
        done += more
        weight.data.fill_(number + place)
        saver.wait()
        last_one = place == len(steps) - 1
        if last_one and calls is not None:
            threading.setprofile(kill_at(calls))
        saver.save(done, trainer.model, trainer.optimizer, {"number": number + place})
        threading.setprofile(None)  # type: ignore[arg-type]
    if calls is None:
        saver.wait()
    elif saver._thread is not None:
        saver._thread.join()
    return began


def quietly(*arguments: Any) -> Any:
    """`run_once`; a killed thread has nothing to say."""
    threading.excepthook = lambda _: None
    return run_once(*arguments)


STRAYS = ("step_57.bak", "step_best", "step_", "step_007", "notes", "step_2", "step_5", ".step_x.tmp")
NUMBERED = re.compile(r"step_(0|[1-9][0-9]*)")


class Life(RuleBasedStateMachine):
    """`numbers`: what was last saved under each name. `latest`: what it must name; None where it names no checkpoint."""

    run_on: Callable[..., list[Any]]

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp()) / "checkpoints"
        self.numbers: dict[str, int] = {}
        self.strays: set[str] = set()
        self.latest: str | None = None
        self.count = 0

    def teardown(self) -> None:
        shutil.rmtree(self.path.parent)

    @property
    def said(self) -> str | None:
        """What `latest` says; None where there is no such file."""
        pointer = self.path / "latest"
        if pointer.is_symlink():
            return os.readlink(pointer)
        return pointer.read_text().strip() if pointer.exists() else None

    @property
    def expected(self) -> str | None:
        """What a run goes on from: also a checkpoint that a killed first save had not named yet."""
        draft = self.path / ".latest.tmp"
        if self.said is None and draft.exists() and draft.read_text().strip() in self.whole:
            return draft.read_text().strip()
        return self.latest

    @property
    def whole(self) -> list[str]:
        """By our own account, not by that of the code that is tested."""
        found = [path for path in self.path.glob("step_*") if NUMBERED.fullmatch(path.name)]
        return sorted((path.name for path in found if (path / "manifest.json").is_file()), key=lambda name: int(name[5:]))

    def go(self, steps: list[int], keep: int | None, tensor: int = 1, calls: int | None = None) -> str:
        """Run; why it was refused, where it rightly was."""
        before, number, expected = self.whole, self.count + 1, self.expected
        self.count += len(steps)
        found = self.run_on(tensor, quietly, self.path, tensor, steps, keep, number, calls)[0]
        if isinstance(found, str):
            assert before and (expected is None or not self.undamaged(expected)), found
            assert self.whole == before and "\n" not in found
            assert all(name in found for name in before[-3:] if "missing" not in found), found
            return found
        begun, saved = found
        assert (begun, saved) == (int(expected[5:]), self.numbers[expected]) if expected else not before, found
        self.latest = expected
        names = [f"step_{begun + sum(steps[: place + 1])}" for place in range(len(steps))]
        for place, name in enumerate(names[: len(names) - (calls is not None)]):
            self.numbers[name], self.latest = number + place, name
        ahead = {name for name in before if int(name[5:]) > begun + sum(steps)}
        assert ahead <= set(self.whole)
        if calls is not None and names:
            self.settle(names[-1], number + len(names) - 1)
        if keep is not None and calls is None and names:
            passed = [name for name in self.whole if int(name[5:]) <= int(names[-1][5:])]
            assert names[-1] in passed
        return ""

    def settle(self, name: str, number: int) -> None:
        """Whether the save that was killed is whole."""
        if name in self.whole and self.said in (None, name):
            self.numbers[name], self.latest = number, name
        elif name in self.whole:
            self.numbers[name] = number

    @initialize()
    def what_people_do_most(self) -> None:
        """Every life begins so: saves, a stray in the place of the next one, a `latest` that gets lost, and one that is set
        back while few are kept."""
        self.go([1, 1], None)
        self.stray_where_the_next_is_saved(False, None)
        self.lose_latest()
        self.latest = self.whole[-3]
        (self.path / "latest").write_text(self.latest)
        self.go([1], 1)

    @rule(
        steps=st.lists(st.integers(1, 2), max_size=3), keep=st.sampled_from([None, 1, 2]), tensor=st.sampled_from([1, 1, 2])
    )
    def run(self, steps: list[int], keep: int | None, tensor: int) -> None:
        self.go(steps, keep, tensor)

    @rule(more=st.integers(1, 2), keep=st.sampled_from([None, 1]), calls=st.integers(0, 700))
    def killed_in_a_save(self, more: int, keep: int | None, calls: int) -> None:
        self.go([more], keep, calls=calls)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), how=st.sampled_from(["text", "windows", "absolute", "link", "outside"]))
    def edit_latest(self, data: st.DataObject, how: str) -> None:
        pointer = self.path / "latest"
        others = sorted(path.name for path in self.path.iterdir() if path.name != "latest")
        name = data.draw(st.sampled_from([*self.whole, *others, "step_99"]))
        pointer.unlink(missing_ok=True)
        if how == "link":
            pointer.symlink_to(name)
        elif how == "outside":
            other = self.path.parent / "other" / name
            shutil.copytree(self.path / self.whole[-1], other)
            pointer.write_text(str(other))
        else:
            pointer.write_text({"text": f"{name}", "windows": f"{name}\r\n", "absolute": f"{self.path / name}\n"}[how])
        names_one = how != "outside" and name in self.whole and self.undamaged(name)
        self.latest = name if names_one else None
        self.go_or_mend()
        shutil.rmtree(self.path.parent / "other", ignore_errors=True)

    @precondition(lambda self: self.whole)
    @rule()
    def lose_latest(self) -> None:
        (self.path / "latest").unlink(missing_ok=True)
        self.latest = None
        self.go_or_mend()

    def undamaged(self, name: str) -> bool:
        return any((self.path / name).glob("__*.distcp"))

    def go_or_mend(self) -> None:
        """A run; where it is refused, the command that the refusal names, until there is none or the run goes on."""
        while (refused := self.go([1], None)) and (mend := refused.partition("to go on from the newest: ")[2]):
            subprocess.run(["sh", "-c", mend], check=True)
            name = mend.split()[mend.split().index("echo") + 1]
            if self.undamaged(name):
                self.latest = name
                assert not self.go([1], None)
                return
            shutil.rmtree(self.path / name)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), partly=st.booleans())
    def delete(self, data: st.DataObject, partly: bool) -> None:
        name = data.draw(st.sampled_from([*self.whole, self.whole[-1]]))
        for path in (self.path / name).glob("__*.distcp") if partly else []:
            path.unlink()
        if not partly:
            shutil.rmtree(self.path / name)
        self.latest = None if name == self.latest else self.latest
        self.go_or_mend()

    @rule(name=st.sampled_from(STRAYS), file=st.booleans())
    def stray(self, name: str, file: bool) -> None:
        path, mark = self.path / name, f"stray {len(self.strays)}"
        if os.path.lexists(path):
            return
        self.path.mkdir(exist_ok=True)
        if file:
            path.write_text(mark)
        else:
            path.mkdir()
            (path / "mine").write_text(mark)
        self.strays.add(mark)

    @rule(file=st.booleans(), keep=st.sampled_from([None, 1]))
    def stray_where_the_next_is_saved(self, file: bool, keep: int | None) -> None:
        self.stray(f"step_{int(self.latest[5:]) + 1 if self.latest else 1}", file)
        self.go([1], keep)

    @invariant()
    def strays_stay(self) -> None:
        files = [path for path in (*self.path.glob("*"), *self.path.glob("*/mine")) if path.is_file()]
        found = {path.read_text() for path in files if path.stat().st_size < 100}
        assert self.strays <= found, (self.strays, sorted(path.name for path in self.path.iterdir()))


@pytest.mark.slow
@pytest.mark.distributed
def test_the_life_of_a_run_directory(run_on: Any) -> None:
    Life.run_on = staticmethod(run_on)
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    life = settings(max_examples=4, stateful_step_count=6, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(Life, settings=life)
