"""Where stores of tokenised conversations lie, which one a file has, and who makes it.

A store's name is the hash of what decides its content: the file's bytes, the tokenizer with its chat template, the settings,
and the code that reads and renders. So a file that changed, or another template, has another store: none is ever stale.
The first process to need one makes it; the others, of the same run or another, wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import megatron_ring.data as rendering
from megatron_ring.corpus.manifest import sha256_of
from megatron_ring.corpus.token_store import DamagedStoreError, TokenStore
from megatron_ring.corpus.tokenizing import TokenizingJob, tokenize_file
from megatron_ring.data.rows import check_file, suffix_of
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError, naming
from megatron_ring.lifetime import die_with_parent

FOLDER = ".tokenized"
LARGE = 4_000_000  # bytes of a file from which other processes tokenise
SETTLED = 3.0  # seconds after its last change from which a file's times tell whether it changed again
MOST_WORKERS = 64
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def cache_folders(given: Path | None, file: Path, run_dir: Path | None) -> list[Path]:
    """Where the store of a file may lie: `given`, or else beside the file, or, where that cannot be written, in the run
    directory."""
    if given is not None:
        return [given]
    return [file.parent / FOLDER, *([] if run_dir is None else [run_dir / FOLDER])]


def open_store(
    job: TokenizingJob, folders: Sequence[Path], tell: Callable[[str], None], make_in: Path | None = None,
    workers: int | None = None,
) -> TokenStore:  # fmt: skip
    """The store of a file from one of `folders`. Where there is none it is made in the first that can be written, or in
    `make_in`.

    Args:
        tell: what to do with a line about how far a long work is; it must be able to go to another process.
        workers: processes that tokenise; by default all cores for a large file, none beside this for a small one.

    Raises:
        UserError: what cannot be read or tokenized, by its FILE:LINE; no folder can be written.
        OSError: no space is left.
    """
    check_file(job.path)
    digest = FileDigest.of(job.path, folders)
    content = _content_of(job, digest)
    key = key_of(content)
    for folder in folders:
        found = _whole(folder / f"sft-{key}", key)
        if found is not None:
            digest.note(folder)
            return found
    folder = _first_writable(folders if make_in is None else [make_in])
    target = folder / f"sft-{key}"
    with locked(folder / f"sft-{key}.lock", functools.partial(tell, f"{job.path}: another process tokenises it: waiting")):
        found = _whole(target, key)
        if found is not None:
            return found
        if target.exists():
            tell(f"{target}: not whole: tokenised again")
        large = job.path.stat().st_size > LARGE
        if workers is None:
            workers = min(MOST_WORKERS, cores()) if large else 1
        if large:
            tell(f"{job.path}: tokenised with {workers} processes, once for all runs, into {target}")
        _build(job, key, {"file": str(job.path), **content}, target, workers, tell, large or workers > 1)
        digest.note(folder)
    try:
        return TokenStore(target, key)
    except DamagedStoreError as error:
        raise UserError(f"{error} as soon as it was written: give --data.cache another folder") from None


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _whole(folder: Path, key: str) -> TokenStore | None:
    try:
        return TokenStore(folder, key)
    except DamagedStoreError:
        return None


def _build(
    job: TokenizingJob, key: str, made_of: dict[str, Any], target: Path, workers: int, tell: Callable[[str], None],
    apart: bool,
) -> None:  # fmt: skip
    """Make a store; `apart`: in another process, whose memory goes with it, and which may fork, as this one may not once it
    has threads."""
    work = functools.partial(_build_here, job, key, made_of, target, workers, tell)
    if not apart:
        work()
        return
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, sender, os.getpid()), name="tokenize")
    process.start()
    sender.close()
    try:
        raised = receiver.recv()
    except EOFError:
        raise UserError(f"{job.path}: the process that tokenises it was killed: start again, it goes on") from None
    finally:
        process.kill()  # where Ctrl-C came
        process.join()
    if raised is not None:
        raise raised


def _report(work: Callable[[], None], sender: Connection, parent: int) -> None:
    """Do it, and send what it raises."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process's to answer
    die_with_parent()
    if os.getppid() != parent:  # it was killed before that took effect
        return
    try:
        work()
    except Exception as error:
        sender.send(error)
    else:
        sender.send(None)


def _build_here(
    job: TokenizingJob, key: str, made_of: dict[str, Any], target: Path, workers: int, tell: Callable[[str], None]
) -> None:
    # A lock that this process's workers hold too: those of a run that was killed have ended when it is free.
    partial = target.with_name(f"{target.name}.partial")
    with locked(target.with_name(f"{target.name}.writing.lock")) as alone:
        if not alone:  # it cannot be gone on with, then
            partial = partial.with_name(f"{partial.name}.{socket.gethostname()}.{os.getpid()}")
        tokenize_file(job, key, made_of, target, partial, workers, tell)


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock; gives whether it can be held: some file systems have none."""
    with naming(path), path.open("a") as file:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told and time.monotonic() - began > 5:
                    on_wait()
                    told = True
                time.sleep(0.1)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                yield False
                return
        yield True


def _first_writable(folders: Sequence[Path]) -> Path:
    errors = []
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / f".trial.{os.getpid()}"
            trial.touch()
            trial.unlink(missing_ok=True)
            return folder
        except OSError as error:
            errors.append(f"{folder}: cannot be written: {error.strerror}")
    raise UserError(f"{'; '.join(errors)}: give --data.cache a folder for tokenised conversations")


def key_of(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _content_of(job: TokenizingJob, digest: FileDigest) -> dict[str, Any]:
    """All that decides which tokens a file becomes."""
    return {
        "sha256": digest.sha256, "kind": suffix_of(job.path), "tokenizer": job.tokenizer.fingerprint,
        "columns": dict(job.fields.columns), "domain": job.fields.domain, "train_on": job.train_on,
        "control_tokens": job.control_tokens, "code": code_fingerprint(),
    }  # fmt: skip


@functools.cache
def code_fingerprint() -> str:
    """Of the code that decides which tokens a file becomes: this project's room of data, and what it renders with."""
    digest = hashlib.blake2b(digest_size=16)
    room = Path(str(rendering.__file__)).parent
    for path in (*sorted(room.glob("*.py")), Path(__file__).with_name("tokenizing.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in ("tokenizers", "transformers", "jinja2", "sentencepiece"):
        try:
            digest.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()


@dataclass(frozen=True)
class FileDigest:
    """SHA-256 of a file, and the size and times that it had before it was read. `settled`: no later change can have left it
    the same times, and no note says so already."""

    path: Path
    sha256: str
    mark: list[int]
    settled: bool

    @classmethod
    def of(cls, path: Path, folders: Sequence[Path]) -> FileDigest:
        """From a note in one of `folders` where the file has the same size and times, or else from its bytes."""
        found = path.stat()
        mark = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        for folder in folders:
            try:
                noted = json.loads((folder / _note_of(path)).read_bytes())
                if noted["mark"] == mark:
                    return cls(path, str(noted["sha256"]), mark, False)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        settled = time.time() - max(found.st_mtime, found.st_ctime) > SETTLED
        return cls(path, sha256_of(path), mark, settled)

    def note(self, folder: Path) -> None:
        """Note it, so that the file need not be read the next time."""
        if self.settled and os.access(folder, os.W_OK):
            said = json.dumps({"file": str(self.path), "mark": self.mark, "sha256": self.sha256})
            with contextlib.suppress(UserError):  # it only saves time
                write_atomically(folder / _note_of(self.path), said.encode())


def _note_of(path: Path) -> str:
    return f"file-{hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()}.json"


def remove_store(store: TokenStore) -> None:
    """Remove a store that is damaged."""
    shutil.rmtree(store.folder, ignore_errors=True)
