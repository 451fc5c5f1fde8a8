"""Stores of tokenised conversations: one for all, whatever kills, damages or fills the place where they lie."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.corpus import token_cache
from megatron_ring.corpus.conversations import SFTDataset, open_dataset
from megatron_ring.data.tokenizer import RingTokenizer
from megatron_ring.errors import UserError
from tests.corpus.test_conversations import config
from tests.processes import start


def written(path: Path, count: int = 40) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number} it is"}]}
        for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "data/c.jsonl")


def opened(path: Path, tokenizer: RingTokenizer, *folders: Path, seed: int = 5, **more: Any) -> SFTDataset:
    told: list[str] = []
    given = list(folders) or [path.parent / ".tokenized"]
    data = open_dataset(config(path, **more), path, tokenizer, seed, given, told.append)
    data.told = told  # type: ignore[attr-defined]
    return data


def built(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The stores that are made from now on."""
    made: list[Path] = []
    build = token_cache._build

    def counted(job: Any, key: str, made_of: Any, target: Path, *more: Any) -> None:
        made.append(target)
        build(job, key, made_of, target, *more)

    monkeypatch.setattr(token_cache, "_build", counted)
    return made


def test_content_and_settings_name_a_store(
    path: Path, tokenizer: RingTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = built(monkeypatch)
    first = opened(path, tokenizer)
    for same in ({"seed": 6}, {"context_length": 256}, {"global_batch": 2}):
        assert opened(path, tokenizer, **same).folder == first.folder
    copied, folder = tmp_path / "other/name.jsonl", path.parent / ".tokenized"
    copied.parent.mkdir()
    shutil.copyfile(path, copied)
    assert opened(copied, tokenizer, folder).folder == first.folder and len(made) == 1
    assert opened(path, tokenizer, train_on="last").folder != first.folder
    assert opened(path, tokenizer, control_tokens="keep").folder != first.folder
    other = RingTokenizer.load(path_of(tokenizer))
    other._tokenizer.chat_template = other._tokenizer.chat_template.replace("HUMAN", "USER")
    assert opened(path, other).folder != first.folder and len(made) == 4
    manifest = json.loads((first.folder / "manifest.json").read_text())
    assert manifest["made_of"]["file"] == str(path) and manifest["records"] == 40


def path_of(tokenizer: RingTokenizer) -> Path:
    return tokenizer._path


def test_a_file_that_changes_has_another_store(
    path: Path, tokenizer: RingTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its size and times: a note of its hash serves only while all are the same, and is not made at once."""
    monkeypatch.setattr(token_cache, "SETTLED", 3600.0)  # the file has changed a moment ago, however slow this machine is
    hashed: list[Path] = []
    digest_of = token_cache.sha256_of
    monkeypatch.setattr(token_cache, "sha256_of", lambda file: [hashed.append(file), digest_of(file)][1])
    first = opened(path, tokenizer)
    assert not list(first.folder.parent.glob("file-*.json"))
    monkeypatch.setattr(token_cache, "SETTLED", -3600.0)  # long ago
    opened(path, tokenizer)
    assert len(hashed) == 2 and len(list(first.folder.parent.glob("file-*.json"))) == 1
    opened(path, tokenizer)
    assert len(hashed) == 2, "the note serves"
    times = path.stat()
    path.write_text(path.read_text().replace("say 7", "say 8"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    assert opened(path, tokenizer).folder != first.folder


DAMAGES = {
    "cut off": lambda store: os.truncate(store / "tokens.bin", (store / "tokens.bin").stat().st_size - 2),
    "longer": lambda store: (store / "mask.bin").open("ab").write(b"\1"),
    "index": lambda store: flip(store / "tokens.idx", 60),
    "checks": lambda store: flip(store / "checks.bin", 5),
    "token": lambda store: flip(store / "tokens.bin", 33),
    "mask": lambda store: flip(store / "mask.bin", 33),
    "manifest": lambda store: (store / "manifest.json").write_text(
        (store / "manifest.json").read_text().replace("40", "41")
    ),
    "no manifest": lambda store: (store / "manifest.json").unlink(),
    "emptied": lambda store: (store / "manifest.json").write_text("[]"),
    "packs": lambda store: flip(next(store.glob("packs-*")), -9),
    "packs' head": lambda store: flip(next(store.glob("packs-*")), 15),
    "packs cut off": lambda store: os.truncate(next(store.glob("packs-*")), 300),
}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_damage_is_never_taken_for_whole(path: Path, tokenizer: RingTokenizer) -> None:
    first = opened(path, tokenizer)
    whole, other = contents(first.folder), opened(path, tokenizer, train_on="last", control_tokens="keep")
    for name, damage in DAMAGES.items():
        damage(first.folder)
        if name in ("token", "mask"):  # seen when it is read: here, or when a run trains on it
            with pytest.raises(UserError, match=r"damaged since it was written.*remove this folder"):
                [first.batch(0, step) for step in range(first.steps_per_epoch)]
            next(first.folder.glob("packs-*")).unlink()
        again = opened(path, tokenizer)
        assert contents(first.folder) == whole and again.fingerprint == first.fingerprint, name
        first = again
    shutil.rmtree(first.folder)
    shutil.copytree(other.folder, first.folder)  # whole, but of another content
    assert "not whole: tokenised again" in opened(path, tokenizer).told[0]  # type: ignore[attr-defined]
    assert contents(first.folder) == whole


def test_where_they_lie(path: Path, tokenizer: RingTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, run = built(monkeypatch), tmp_path / "run"
    folders = token_cache.cache_folders(None, path, run)
    assert folders == [path.parent / ".tokenized", run / ".tokenized"]
    assert token_cache.cache_folders(tmp_path / "given", path, run) == [tmp_path / "given"]
    folders[0].write_text("a file is in the way, as a folder may be that cannot be written")
    assert opened(path, tokenizer, *folders).folder.parent == folders[1] and len(made) == 1
    with pytest.raises(UserError, match=r"c\.jsonl: .*\.tokenized: cannot be written: File exists: give --data\.cache"):
        opened(path, tokenizer, folders[0])
    kept = opened(path, tokenizer, folders[1])
    monkeypatch.setattr(os, "access", lambda *_: False)  # a store that may only be read serves
    read_only = opened(path, tokenizer, folders[1], seed=6)
    assert len(made) == 1 and read_only.fingerprint == kept.fingerprint and len(list(kept.folder.glob("packs-*"))) == 1


def test_on_a_full_disk_nothing_is_taken_for_whole(path: Path, tokenizer: RingTokenizer, tmp_path: Path) -> None:
    long = written(tmp_path / "long.jsonl", 400)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            opened(long, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert ".partial/" in str(raised.value.filename)  # `run_main` makes one line of it
    assert not [one for one in (tmp_path / ".tokenized").glob("sft-*") if one.is_dir() and ".partial" not in one.name]
    assert opened(long, tokenizer).sequences == 400
    assert not list((tmp_path / ".tokenized").glob("*.partial"))


@pytest.mark.slow
def test_killed_and_two_at_once(tokenizer_dir: Path, tokenizer: RingTokenizer, tmp_path: Path) -> None:
    """A real process with workers is killed when some is saved; what it left is gone on with, by two that start together."""
    path = written(tmp_path / "a/c.jsonl", 4_000)
    program = (
        "import sys; from pathlib import Path\n"
        "from megatron_ring.corpus import token_cache, tokenizing\n"
        "from tests.corpus.test_token_cache import job_of\n"
        "path, tokenizer = map(Path, sys.argv[1:])\n"
        "job, folder = job_of(path, tokenizer), path.parent / '.tokenized'\n"
    )
    first = program + (
        "tokenizing.SAVE_SECONDS = 0\n"
        "folder.mkdir()\n"
        "content = token_cache._content_of(job, token_cache.FileDigest.of(path, []))\n"
        "key = token_cache.key_of(content)\n"
        "token_cache._build_here(job, key, content, folder / f'sft-{key}', 2, print)\n"
    )
    both_of = program + ("if __name__ == '__main__':\n    token_cache.open_store(job, [folder], print, workers=2)\n")
    folder, files = path.parent / ".tokenized", [str(path), str(tokenizer_dir)]
    process = start([sys.executable, "-c", first, *files], stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.glob("sft-*.partial/state.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was finished before it was killed"
    assert not list(folder.glob("sft-*/manifest.json"))
    command = [sys.executable, "-c", both_of, *files]
    both = [start(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outs = [one.communicate(timeout=120)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum("going on after" in out for out in outs) == 1, outs
    (store,) = (one for one in folder.glob("sft-*") if one.is_dir())
    plain = opened(path, tokenizer, tmp_path / "whole")
    names = ("tokens.bin", "tokens.idx", "mask.bin", "checks.bin", "left_out.bin", "manifest.json")
    assert {name: contents(store)[name] for name in names} == {name: contents(plain.folder)[name] for name in names}


def job_of(path: Path, tokenizer_dir: Path) -> Any:
    from megatron_ring.corpus.tokenizing import TokenizingJob
    from megatron_ring.data.fields import Fields

    return TokenizingJob(path, Fields(), RingTokenizer.load(tokenizer_dir))
