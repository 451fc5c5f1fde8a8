"""The folder of checkpoints under everything that people and kills do to it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from megatron_ring.checkpoint import folder as under_test
from megatron_ring.errors import UserError

STRAYS = ("step_57.bak", "step_best", "step_old", "step_", "step_007", "step_-3", "step_٣", "notes.txt", "old", ".hidden")


def draft(checkpoints: Path, step: int) -> Path:
    """A finished folder that has no name yet, as a save leaves it before it publishes."""
    work = checkpoints / f".step_{step}.tmp"
    work.mkdir(parents=True)
    line = under_test.line_to(checkpoints, step)
    manifest = {"step": step, "model": {}, "files": {}, "line": line}
    (work / "manifest.json").write_text(json.dumps(manifest))
    return work


def save(checkpoints: Path, step: int, keep_last: int | None = None) -> None:
    under_test.tidy(checkpoints)
    work = draft(checkpoints, step)
    line = json.loads((work / "manifest.json").read_text())["line"]
    under_test.publish_checkpoint(work, checkpoints / f"step_{step}")
    if keep_last:
        under_test.prune(checkpoints, line, keep_last)


def test_what_lies_where_a_checkpoint_is_to_be_saved_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "step_1").write_text("a file")
    for number in (1, 2):
        (tmp_path / "step_2").mkdir()
        (tmp_path / "step_2" / "mine").write_text(str(number))
        if number == 1:
            save(tmp_path, 1)
        save(tmp_path, 2)
        shutil.rmtree(tmp_path / "step_2")
    left = {path.parent.name: path.read_text() for path in tmp_path.glob("*.stray*/mine")}
    assert left == {"step_2.stray1": "1", "step_2.stray2": "2"} and names(tmp_path) == ["step_1"]
    assert (tmp_path / "step_1.stray1").read_text() == "a file"


def names(checkpoints: Path) -> list[str]:
    return [path.name for path in under_test.whole_checkpoints(checkpoints)]


def test_a_run_set_back_keeps_what_it_saves_and_what_it_left(tmp_path: Path) -> None:
    for step in (14, 56, 57):
        save(tmp_path, step)
    (tmp_path / "latest").write_text("step_14\n")
    for step, kept in ((20, ["step_14", "step_20"]), (30, ["step_20", "step_30"]), (60, ["step_30", "step_60"])):
        save(tmp_path, step, keep_last=2)
        assert names(tmp_path) == sorted([*kept, "step_56", "step_57"], key=lambda name: int(name[5:]))
        assert under_test.latest_checkpoint(tmp_path) == tmp_path / f"step_{step}"


def test_strays_are_neither_read_nor_removed(tmp_path: Path) -> None:
    for number, name in enumerate(STRAYS):
        (tmp_path / name).mkdir() if number % 2 else (tmp_path / name).write_text("mine")
    for step in range(1, 6):
        save(tmp_path, step, keep_last=2)
    assert names(tmp_path) == ["step_4", "step_5"]
    assert {path.name for path in tmp_path.iterdir()} == {*STRAYS, "step_4", "step_5", "latest"}


@pytest.mark.parametrize("text", ["step_5", " step_5 \n\n", "step_5/", "./step_5"])
def test_what_latest_may_say(text: str, tmp_path: Path) -> None:
    save(tmp_path, 5)
    save(tmp_path, 6)
    (tmp_path / "latest").write_text(text)
    assert under_test.latest_checkpoint(tmp_path) == tmp_path / "step_5"


@pytest.mark.parametrize("text", [b"", b"step_9", b"step_best", b"\xff\xfe\x00", b"5", b"step_5\nstep_6", b"../step_5",
                                  b"x" * 5000, b"step_5\0"])  # fmt: skip
def test_what_it_may_not(text: bytes, tmp_path: Path) -> None:
    for step in (5, 6):
        save(tmp_path, step)
    (tmp_path / "latest").write_bytes(text)
    with pytest.raises(UserError, match=r"whole checkpoints: step_5, step_6; .* echo step_6 > \S*/latest$") as refused:
        under_test.latest_checkpoint(tmp_path)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


def test_latest_missing_a_link_a_folder_and_damage(tmp_path: Path) -> None:
    pointer = tmp_path / "latest"
    assert under_test.latest_checkpoint(tmp_path / "nothing") is None
    for step in (5, 6):
        save(tmp_path, step)
    pointer.unlink()
    with pytest.raises(UserError, match="there is no such file; whole checkpoints: step_5, step_6"):
        under_test.latest_checkpoint(tmp_path)
    for target in ("step_5", tmp_path / "step_5"):
        pointer.symlink_to(target)
        assert under_test.latest_checkpoint(tmp_path) == under_test.checkpoint_folder(pointer) == tmp_path / "step_5"
        pointer.unlink()
    pointer.symlink_to("step_9")
    with pytest.raises(UserError, match=r"names step_9, .*: rm -r \S*/latest; echo step_6 > "):
        under_test.latest_checkpoint(tmp_path)
    save(tmp_path, 7)  # a link is replaced, not followed
    assert pointer.read_text() == "step_7\n" and not pointer.is_symlink()
    (tmp_path / "step_7" / "manifest.json").write_text('{"step": 7, "model": {}, "files": {"a": {"bytes": 1, "crc32": []}}}')
    with pytest.raises(UserError, match=r"step_7/a: missing, .*; whole checkpoints: step_5, step_6; to go on"):
        under_test.latest_checkpoint(tmp_path)
    pointer.unlink()
    pointer.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        under_test.latest_checkpoint(tmp_path)


def test_checkpoints_of_older_versions_have_no_line(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
        path = tmp_path / f"step_{step}" / "manifest.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "line"}))
    save(tmp_path, 4, keep_last=2)
    assert names(tmp_path) == ["step_3", "step_4"]


def test_a_checkpoint_that_is_a_link_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    (tmp_path / "run" / "step_1").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "step_1").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "run", 2, keep_last=1)
    assert names(tmp_path / "run") == ["step_1", "step_2"] and (tmp_path / "elsewhere" / "manifest.json").exists()


class Folder(RuleBasedStateMachine):
    """What a run, kills and people do in turn. `line` is what the run has passed, by our own account."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp())
        self.strays: set[str] = set()
        self.latest: str | None = None  # what a run must go on from; None: it must refuse, or begin where none is whole

    def teardown(self) -> None:
        shutil.rmtree(self.path)

    @property
    def start(self) -> int | None:
        """The step that a run starts after; None where it refuses."""
        try:
            found = under_test.latest_checkpoint(self.path)
        except UserError as error:
            assert all(name in str(error) for name in names(self.path)[-under_test.SHOWN :])
            return None
        return 0 if found is None else int(found.name[5:])

    @rule(steps=st.lists(st.integers(1, 3), max_size=4), keep=st.sampled_from([None, 1, 2, 3]))
    def run(self, steps: list[int], keep: int | None) -> None:
        step = self.start
        for more in steps if step is not None else []:
            left = {name for name in names(self.path) if int(name[5:]) > step + more}
            step += more
            save(self.path, step, keep)
            self.latest = f"step_{step}"
            assert left | {self.latest} <= set(names(self.path))

    @rule(more=st.integers(1, 3), named=st.booleans())
    def killed_in_a_save(self, more: int, named: bool) -> None:
        """Before the folder has its name, or right after it."""
        if (step := self.start) is None:
            return
        under_test.tidy(self.path)
        work, target = draft(self.path, step + more), self.path / f"step_{step + more}"
        (self.path / ".latest.tmp").write_text(target.name + "\n")
        if named:
            under_test.publish(work, target)
            pointer = self.path / "latest"
            said = (
                os.readlink(pointer) if pointer.is_symlink() else pointer.read_text().strip() if pointer.exists() else None
            )
            if said in (None, target.name):
                self.latest = target.name

    @precondition(lambda self: names(self.path))
    @rule(data=st.data(), link=st.booleans())
    def edit_latest(self, data: st.DataObject, link: bool) -> None:
        pointer, name = self.path / "latest", data.draw(st.sampled_from([*names(self.path), "step_99", ""]))
        pointer.unlink(missing_ok=True)
        pointer.symlink_to(name) if link and name else pointer.write_text(name)
        self.latest = name if name in names(self.path) else None

    @precondition(lambda self: names(self.path))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names(self.path)))
        shutil.rmtree(self.path / name)
        self.latest = None if name == self.latest else self.latest

    @rule(name=st.sampled_from(STRAYS), file=st.booleans())
    def stray(self, name: str, file: bool) -> None:
        if name not in self.strays:
            (self.path / name).write_text("") if file else (self.path / name).mkdir()
        self.strays.add(name)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.strays <= {path.name for path in self.path.iterdir()}
        if self.latest is not None:
            assert self.start == int(self.latest[5:])
        elif names(self.path):
            interrupted = self.path / ".latest.tmp"
            assert self.start is None or (not (self.path / "latest").exists() and interrupted.exists())


TestFolder = Folder.TestCase
TestFolder.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
