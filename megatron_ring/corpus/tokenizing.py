"""A file of conversations to a store of tokens: read once, tokenised by many processes, written in order.

Killed at any moment, the same call goes on from the state that was saved last. The result depends neither on that nor on the
number of processes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_ring.corpus.growing import GrowingFiles
from megatron_ring.corpus.index_file import token_dtype, write_index
from megatron_ring.corpus.pool import WorkerKilledError, WorkerPool
from megatron_ring.corpus.token_store import DATA, MANIFEST, SMALL, StoreManifest, small_digest
from megatron_ring.data.fields import Fields
from megatron_ring.data.files import SFTReader
from megatron_ring.data.rows import parsed_rows, raw_rows, read_rows
from megatron_ring.data.tokenizer import ControlTokenError, RingTokenizer, TrainOn
from megatron_ring.errors import UserError, naming

PARTS = ("tokens", "mask", "lengths", "checks", "left_out")
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 18, 256  # of rows that a worker gets at a time
SAVE_SECONDS = 15.0
TELL_SECONDS = 30.0


@dataclass(frozen=True)
class TokenizingJob:
    """What decides the content of a store.

    Attributes:
        path: SFT file.
        train_on: which of the assistant's messages are trained (`RingTokenizer.training_tokens`).
        control_tokens: what becomes of conversations that spell a control token: "error" refuses them, "drop" leaves them
            out, "keep" takes the tokens for what they spell.
    """

    path: Path
    fields: Fields
    tokenizer: RingTokenizer
    train_on: TrainOn = "all"
    control_tokens: Literal["error", "drop", "keep"] = "error"

    @property
    def reader(self) -> SFTReader:
        return SFTReader(self.path, self.fields)


@dataclass(frozen=True)
class _Rows:
    """Some raw rows of the file, `before` rows after its beginning, which is of this form."""

    before: int
    rows: list[Any]
    form: str


@dataclass(frozen=True)
class _Tokenized:
    """What became of them: bytes for each of `PARTS`; numbers of what is left out count from the first of these records."""

    parts: dict[str, bytes]
    records: int
    unread: set[str]
    unread_columns: set[str]


@dataclass
class _State:
    """How far the work is: raw rows and conversations that are done, and the sizes of the files (bytes)."""

    rows: int = 0
    records: int = 0
    unread: list[str] = field(default_factory=list)
    unread_columns: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))


def tokenize_file(
    job: TokenizingJob, key: str, made_of: dict[str, Any], target: Path, partial: Path, workers: int,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Make the store `target` (`token_store`). `partial`: the folder in which it grows, this process's alone.

    Args:
        tell: what to do with a line about how far it is.

    Raises:
        UserError: what cannot be read or tokenized, by its FILE:LINE; no conversation is left.
        OSError: it cannot be written.
    """
    partial.mkdir(parents=True, exist_ok=True)
    files, reader = GrowingFiles(partial, PARTS), job.reader
    state = _restored(files)
    before = job.path.stat() if job.path.is_file() else None
    try:
        with WorkerPool(_Work(job), workers, "give fewer --workers, or more memory") as pool:
            reader.begin_as(pool.submit(_first_form, job).result())
            _fill(job, files, state, pool, reader, tell)
    except WorkerKilledError:
        raise
    except UserError:  # the file must change: this cannot be gone on with
        files.remove()
        raise
    finally:
        files.close()
    after = job.path.stat()
    if before is None or (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        files.remove()
        raise UserError(f"{job.path}: changed while it was read: leave it alone, and start again")
    left_out = state.sizes["left_out"] // 8
    if not state.sizes["lengths"]:
        files.remove()
        reader.check_some([None] * state.records)
        raise nothing_left(0, state.records, 0, left_out)
    reader.unread, reader.unread_columns = set(state.unread), set(state.unread_columns)
    _publish(files, partial, target, job, key, made_of, state, reader.remark(state.records))


def nothing_left(overlong: int, records: int, limit: int, left_out: int) -> UserError:
    """The error of a file of which no conversation is left."""
    said = f"{left_out} of {records} spell control tokens"
    if overlong:
        said = f"{overlong} of {records} are longer than {limit} tokens, {left_out} spell control tokens"
    return UserError(f"no conversation is left to train on ({said}): give more data, or raise --data.context-length")


def _restored(files: GrowingFiles) -> _State:
    """The state that was left, or, where it cannot be gone on with, a new one."""
    try:
        found = files.read_state()
        state = _State() if found is None else _State(**found)
        if files.open(state.sizes) is None:
            return state
    except (ValueError, TypeError, KeyError):
        pass
    files.clear()
    state = _State()
    files.open(state.sizes)
    return state


def _fill(
    job: TokenizingJob, files: GrowingFiles, state: _State, pool: WorkerPool[_Rows, _Tokenized], reader: SFTReader,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    if state.rows:
        tell(f"{job.path}: going on after {state.records:,} conversations that were tokenised before")
    saved = told = time.monotonic()
    for after, done in pool.in_order(_chunks(raw_rows(job.path), state.rows, reader.form)):
        numbers = np.frombuffer(done.parts["left_out"], "<i8") + state.records
        for name in PARTS:
            files.write(name, numbers.tobytes() if name == "left_out" else done.parts[name], state.sizes)
        state.rows, state.records = after, state.records + done.records
        state.unread = sorted({*state.unread, *done.unread})
        state.unread_columns = sorted({*state.unread_columns, *done.unread_columns})
        if time.monotonic() - saved > SAVE_SECONDS:
            files.save(vars(state))
            saved = time.monotonic()
        if time.monotonic() - told > TELL_SECONDS:
            tell(f"{job.path}: {state.records:,} conversations tokenised")
            told = time.monotonic()
    files.save(vars(state))


def _chunks(rows: Iterable[Any], skip: int, form: str) -> Iterator[tuple[int, _Rows]]:
    """Rows behind the first `skip`, some at a time, each with how many rows are done with them."""
    taken: list[Any] = []
    size = 0
    for row in itertools.islice(rows, skip, None):
        taken.append(row)
        size += len(row) if isinstance(row, bytes) else _CHUNK_BYTES // 64
        if size >= _CHUNK_BYTES or len(taken) >= _CHUNK_ROWS:
            yield skip + len(taken), _Rows(skip, taken, form)
            skip, taken, size = skip + len(taken), [], 0
    if taken:
        yield skip + len(taken), _Rows(skip, taken, form)


def _first_form(job: TokenizingJob) -> str:
    """Name of the form of the file's first row. Raises `UserError`."""
    reader = job.reader
    for _, row in read_rows(job.path):
        reader.begin(row)
        break
    return reader.form


class _Work:
    """What a worker does with rows."""

    def __init__(self, job: TokenizingJob) -> None:
        self._job = job
        self._dtype = token_dtype(job.tokenizer.vocab_size)

    def __call__(self, given: _Rows) -> _Tokenized:
        """Raises `UserError`, which names FILE:LINE."""
        job, reader = self._job, self._job.reader
        reader.begin_as(given.form)
        made: dict[str, list[bytes]] = {name: [] for name in PARTS}
        number = -1
        for number, record in enumerate(reader.records(parsed_rows(job.path, given.rows, given.before))):
            try:
                sequence = job.tokenizer.training_tokens(record, None, job.train_on, job.control_tokens == "keep")
            except UserError as error:
                if not isinstance(error, ControlTokenError) or job.control_tokens != "drop":
                    raise UserError(f"{record.place}: {error}") from None
                made["left_out"].append(np.int64(number).tobytes())
                continue
            tokens, mask = np.array(sequence.tokens, self._dtype).tobytes(), bytes(sequence.loss_mask)
            made["tokens"].append(tokens)
            made["mask"].append(mask)
            made["lengths"].append(np.int32(len(mask)).tobytes())
            made["checks"].append(np.uint32(zlib.crc32(mask, zlib.crc32(tokens))).tobytes())
        parts = {name: b"".join(pieces) for name, pieces in made.items()}
        return _Tokenized(parts, number + 1, reader.unread, reader.unread_columns)


def _publish(
    files: GrowingFiles, partial: Path, target: Path, job: TokenizingJob, key: str, made_of: dict[str, Any], state: _State,
    remark: str,
) -> None:  # fmt: skip
    """Give the files their names, and then the folder its own."""
    write_index(partial / "tokens.idx", files.path("lengths"), token_dtype(job.tokenizer.vocab_size))
    for name in (*DATA, *SMALL):
        if not name.endswith(".idx"):
            files.path(name.removesuffix(".bin")).replace(partial / name)
    files.path("lengths").unlink()
    sizes = {name: (partial / name).stat().st_size for name in (*DATA, *SMALL)}
    manifest = StoreManifest(key, state.records, remark, made_of, sizes, small_digest(partial))
    files.state.unlink()
    path = partial / MANIFEST
    with naming(path), path.open("wb") as stream:
        stream.write(manifest.to_json())
        stream.flush()
        os.fsync(stream.fileno())
    if target.is_dir():
        shutil.rmtree(target)  # damaged
    try:
        partial.replace(target)
    except OSError:
        if not (target / MANIFEST).exists():
            raise
        shutil.rmtree(partial)  # where files cannot be locked, another process was faster
