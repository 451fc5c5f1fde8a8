"""Run directories as people and file systems leave them: edited, copied in part, linked, not ours to write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.yaml_file import dump_yaml
from megatron_ring.errors import UserError
from megatron_ring.run import lock
from megatron_ring.run.directory import RunDirectory, record_of
from tests.processes import run as execute
from tests.run.test_directory import FLAGS, config_of, recorded


def with_checkpoint(folder: Path, step: int, extra: dict[str, Any]) -> None:
    """A whole checkpoint of no model, and `latest`."""
    whole = folder / "checkpoints" / f"step_{step}"
    whole.mkdir(parents=True)
    manifest = {"step": step, "model": {}, "files": {}, "layout": {}, "extra": extra}
    (whole / "manifest.json").write_text(json.dumps(manifest))
    (folder / "checkpoints" / "latest").write_text(f"step_{step}\n")


def test_the_checkpoint_says_what_the_run_was_whatever_became_of_config_yaml(tmp_path: Path) -> None:
    config, path = config_of("sft", tmp_path), tmp_path / "config.yaml"
    (tmp_path / "metrics.jsonl").write_text(TWO + '\n{"step": 3}\n')
    with_checkpoint(tmp_path, 3, {"config": json.loads(json.dumps(record_of(config)))})
    other = replace(config, seed=2)
    for text in (None, dump_yaml(record_of(other)), "", "seed: [", "stage: rl\n"):
        path.unlink(missing_ok=True) if text is None else path.write_text(text)
        run = RunDirectory(tmp_path, writes=True)
        with pytest.raises(UserError, match=r"another configuration \(seed 1 -> 2\)"):
            run.open(other)
        run.close()
        run.open(config)  # and writes it anew
        run.close()
        assert yaml.safe_load(path.read_text())["seed"] == 1 and run.notes == ()
    assert run.of_checkpoints == {"content": {}, "config": record_of(config)}


def test_an_older_checkpoint_without_config_yaml_is_told(tmp_path: Path) -> None:
    with_checkpoint(tmp_path, 3, {})
    run = RunDirectory(tmp_path, writes=True)
    (tmp_path / "metrics.jsonl").write_text(TWO + '\n{"step": 3}\n')
    run.open(config_of("sft", tmp_path))
    assert run.notes == ("config.yaml is missing: the settings of the run so far are not known, and not compared",)
    run.close()


WHOLE = '{"step": 1, "loss": 2}'
TWO = f'{WHOLE}\n{{"step": 2, "loss": 1}}'


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (TWO + "\n", 2),
        (TWO, 2),  # an editor left out the last end of line
        (TWO + '\n{"step": 3, "lo', 2),  # torn by a kill
        (TWO + '\n{"step": 3, "lo\n', 2),
        (TWO.replace("\n", "\r\n") + "\r\n", 2),
        (f"\n{WHOLE}\n\n  \n" + TWO.split("\n")[1] + "\n\n", 2),
        ("", 0),
        ("\n", 0),
        (TWO + '\n{"step": 3}\n', 2),  # after the checkpoint
        (TWO + "\n" + 40 * "\0", 2),  # the machine lost power
    ],
)
def test_metrics_that_were_edited(text: str, kept: int, tmp_path: Path) -> None:
    run = recorded("sft", tmp_path)
    with_checkpoint(tmp_path, 2, {})
    (tmp_path / "metrics.jsonl").write_bytes(text.encode())
    run.open(config_of("sft", tmp_path))
    assert run.notes == (() if kept == 2 else ("metrics.jsonl lacks 2 of the 2 step(s) before",))
    run.start_logging(2)
    run.log({"step": 3, "loss": 0.5})
    run.close()
    lines = (tmp_path / "metrics.jsonl").read_text().split("\n")
    assert [json.loads(line)["step"] for line in lines[:-1]] == [*range(1, kept + 1), 3] and lines[-1] == ""


@pytest.mark.parametrize(
    "line",
    [b"5", b'"text"', b"[1]", b"{}", b'{"step": "1"}', b'{"step": 1', b"\xff\xfe", b"null", b"[" * 99999],
    ids=lambda line: repr(line[:20]),
)
def test_metrics_that_are_none(line: bytes, tmp_path: Path) -> None:
    run, path = recorded("sft", tmp_path), tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n" + WHOLE.encode() + b"\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}:1: not a step's metrics"):
        run.open(config_of("sft", tmp_path))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        run.open(config_of("sft", tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"step": "3"}, {"step": 3.0}, {"step": -3}, {"step": True}, {"step": None}, {"model": []}, {"layout": []},
        {"extra": None},
        {"extra": [1]}, {"extra": {"config": "x"}}, {"extra": {"config": [1]}}, {"extra": {"content": None}},
        {"files": []}, {"files": {"a": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_that_was_edited(change: dict[str, Any], tmp_path: Path) -> None:
    with_checkpoint(tmp_path, 3, {})
    path = tmp_path / "checkpoints" / "step_3" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for text in (path.read_text(), "[" * 99999):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: not a checkpoint manifest"):
            RunDirectory(tmp_path, writes=True).open(config_of("sft", tmp_path))


def test_a_copy_without_checkpoints_and_hidden_files_does_not_begin_anew(tmp_path: Path) -> None:
    """`cp -r run/*` leaves `.saved` behind: the metrics name checkpoints. A run that was killed in its first save begins."""
    run, path = recorded("sft", tmp_path), tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "checkpoint": f"step_{step}"}) + "\n" for step in (1, 2, 3)]
    path.write_text("".join(lines))
    with pytest.raises(UserError, match="checkpoints were saved here, and none is whole now"):
        run.open(config_of("sft", tmp_path))
    assert path.read_text() == "".join(lines)
    path.write_text(lines[0])
    run.open(config_of("sft", tmp_path))
    assert run.notes == ("1 recorded step(s) had no checkpoint yet: beginning anew",)
    run.close()


def test_a_checkpoint_under_another_name_and_a_beginning_after_all_is_gone_are_told(tmp_path: Path) -> None:
    run, config = recorded("sft", tmp_path), config_of("sft", tmp_path)
    with_checkpoint(tmp_path, 2, {})
    (tmp_path / "metrics.jsonl").write_text(TWO)
    (tmp_path / "checkpoints" / "step_2").rename(tmp_path / "checkpoints" / "step_9")
    (tmp_path / "checkpoints" / "latest").write_text("step_9")
    run.open(config)
    assert run.notes == ("latest names step_9, which was saved as step_2: the run goes on after step 2",)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "metrics.jsonl").unlink()
    run.saved_note.write_text("step_9")
    run.open(config)
    assert run.notes == ("checkpoints were saved here, and are gone with the metrics: beginning anew",)
    run.open(config)
    assert run.notes == () and not run.saved_note.exists()
    run.close()


def test_links_on_the_way_and_a_second_run_by_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run directory, and its checkpoints, are links to another disk."""
    monkeypatch.setattr(lock, "SECONDS_TO_WAIT", 0.0)
    for name in ("real", "disk", "spare"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "checkpoints").symlink_to(tmp_path / "disk")
    run, config = recorded("sft", tmp_path / "link"), config_of("sft", tmp_path / "link")
    run.open(config)
    with pytest.raises(UserError, match="another run is going on in it"):
        RunDirectory(tmp_path / "real", writes=True).open(config)
    run.close()
    assert (tmp_path / "real" / "checkpoints").is_symlink() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("place", [".", "tensorboard", "metrics.jsonl"])
def test_what_lies_in_the_way_is_one_line(place: str, tmp_path: Path) -> None:
    """A file where a folder is wanted, or the other way."""
    out = tmp_path / "run"
    config = config_of("sft", out)
    if place == ".":
        out.write_text("")
    else:
        out.mkdir()
        (out / place).mkdir() if place == "metrics.jsonl" else (out / place).write_text("")
    script = f"""
from pathlib import Path
from megatron_ring.config.cli import parse
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import run_main
from megatron_ring.run.directory import RunDirectory
def main():
    run = RunDirectory(Path({str(out)!r}), writes=True)
    run.open(parse(SFTConfig, "sft", "", {FLAGS["sft"]!r}.split() + ["--run-dir", {str(out)!r}, "--data.tokenizer", "t"]))
    run.start_logging(0)
run_main(main)
"""
    done = execute([sys.executable, "-c", script])
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and str(out) in lines[0], done.stderr
    assert config.run_dir == out


NOT_ROOT = """
import os, sys
from pathlib import Path
from megatron_ring.checkpoint.folder import discard, publish_checkpoint, tidy, whole_checkpoints
from megatron_ring.config.cli import parse
from megatron_ring.config.sft import SFTConfig
from megatron_ring.errors import run_main
from megatron_ring.run.directory import RunDirectory
out = Path(sys.argv[1])
if os.geteuid() == 0:
    os.setuid(65534)
"""


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that another user can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/.lock"])
def test_what_may_not_be_written_is_told_at_the_start(open_to_all: Path, place: str) -> None:
    out = open_to_all / "run"
    (out / "checkpoints").mkdir(parents=True)
    out.chmod(0o777)
    (out / "checkpoints").chmod(0o777)
    if place.endswith("lock"):
        (open_to_all / place).write_text("")
    (open_to_all / place).chmod(0o000 if place.endswith("lock") else 0o555)
    script = (
        NOT_ROOT
        + f"""
def main():
    run = RunDirectory(out, writes=True)
    run.open(parse(SFTConfig, "sft", "", {FLAGS["sft"]!r}.split() + ["--run-dir", str(out), "--data.tokenizer", "t"]))
run_main(main)
"""
    )
    done = execute([sys.executable, "-c", script, str(out)])
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith(f"error: --run-dir {out}: cannot be written: "), line
    assert line.endswith(": Permission denied"), line


def test_a_removal_that_leaves_something_does_not_stop_the_next_save(open_to_all: Path) -> None:
    """As on NFS, where a file that is still open stays behind."""
    script = (
        NOT_ROOT
        + """
def save(step):
    tidy(out)
    work = out / f".step_{step}.tmp"
    work.mkdir()
    (work / "manifest.json").write_text("{}")
    publish_checkpoint(work, out / f"step_{step}")
for step in (1, 2):
    save(step)
stuck = out / ".step_1.old" / "stuck"
stuck.mkdir(parents=True)
(stuck / ".nfs01").write_text("")
stuck.chmod(0o500)
(out / "latest").write_text("step_2")
discard(out / "step_1")
save(1)
save(1)
print([path.name for path in whole_checkpoints(out)], (out / "latest").read_text().strip())
"""
    )
    done = execute([sys.executable, "-c", script, str(open_to_all)])
    assert done.returncode == 0 and done.stdout == "['step_1', 'step_2'] step_1\n", done.stderr
