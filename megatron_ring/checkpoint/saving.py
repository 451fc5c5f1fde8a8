"""Saving whole training states to `checkpoints/step_N/` while training goes on.

A save stalls the step only to copy to host memory; threads of each process then write. A save that training waits for is
written straight from where the tensors are. Atomic: everything goes to
`.step_N.tmp`, is made durable and renamed, and only then `latest` names it (`folder`). A killed or failed save leaves the
previous checkpoint as it was.

The threads use no collectives. Each leaves a receipt (`.rank_R`) in the folder when it is done; the main process's thread
waits for all of them, writes the manifest and renames.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from megatron.core import __version__ as megatron_version

from megatron_ring.checkpoint.buffers import agreed
from megatron_ring.checkpoint.fast_files import DirectWriter
from megatron_ring.checkpoint.folder import latest_or_none, line_to, prune, publish, publish_checkpoint, tidy
from megatron_ring.checkpoint.manifest import write_manifest
from megatron_ring.checkpoint.pieces import (
    Piece,
    has_masters,
    optimizer_parts,
    optimizer_pieces,
    weight_pieces,
)
from megatron_ring.checkpoint.sharded import Staged, Staging, write_saved
from megatron_ring.errors import UserError
from megatron_ring.model.ring_model import RingModel
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.parallel.device import random_state

VERSIONS = {"megatron_core": megatron_version, "torch": torch.__version__}
FAILURES = (OSError, RuntimeError)
SECONDS_AFTER_FAILURE = 60.0  # how long a run that failed waits for a save under way


def allocate_moments(optimizer: Any) -> None:
    """Give every parameter of a distributed optimizer that has not stepped yet its (zero) state. State that was sent to host
    memory is back afterwards."""
    for part in optimizer_parts(optimizer):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                part.optimizer.state_of(parameter)


def _optimizer_step(optimizer: Any) -> int:
    """Updates so far; every weight has seen as many."""
    steps = {int(held["step"]) for part in optimizer_parts(optimizer) for held in part.optimizer.state.values()}
    return max(steps, default=0)


def random_file(rank: int) -> str:
    """Name of the file with a process's random states."""
    return f"random_rank_{rank}.pt"


def _plainly(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error).strip().splitlines()[-1]


@dataclasses.dataclass
class _Save:
    """One save under way in this process."""

    work: Path
    target: Path
    step: int
    staged: Staged
    model: Any
    layout: dict[str, int]
    extra: dict[str, Any]
    optimizer_step: int | None
    files: Mapping[str, bytes]
    problem: str = ""


class CheckpointSaver:
    """Saves one run's checkpoints. Use it as a context: leaving it waits for the save under way.

    Args:
        checkpoints: folder of the run's checkpoints.
        keep_last: how many to keep (None: all).
        background: write in a thread, from host memory; False returns from `save` when the checkpoint is whole.
        note: file, outside of the folder, for the name of the last checkpoint: it tells a folder that was emptied from one
            that never held any.
        with_optimizer: False saves weights alone.
    """

    def __init__(
        self, checkpoints: Path, context: ParallelContext, keep_last: int | None = None, background: bool = True,
        note: Path | None = None, with_optimizer: bool = True,
    ) -> None:  # fmt: skip
        self.checkpoints, self.context, self.keep_last, self.background = checkpoints, context, keep_last, background
        self._note, self._with_optimizer = note, with_optimizer
        self._staging = Staging()
        self._save: _Save | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:  # other processes may be gone: nothing collective
            self._thread.join(SECONDS_AFTER_FAILURE)

    def save(
        self, step: int, model: RingModel, optimizer: Any, extra: dict[str, Any], name: str | None = None,
        files: Mapping[str, bytes] | None = None, last: bool = False,
    ) -> Path:  # fmt: skip
        """Save as `step_<step>` (or `name`); all ranks take part. Weights may change as soon as this returns.

        Args:
            optimizer: None saves weights alone.
            extra: plain JSON values equal on all ranks (data position, …), returned by `load_checkpoint`.
            files: what else this process has for the checkpoint, by file name, for `read_file`.
            last: nothing is trained after it. It returns when the checkpoint is whole, and takes no host memory for it.

        Raises:
            UserError: this or the save before it failed (the disk is full or not writable).
        """
        self.wait()
        background = self.background and not last
        optimizer = optimizer if self._with_optimizer else None
        name = name or f"step_{step}"
        work, target = self.checkpoints / f".{name}.tmp", self.checkpoints / name
        if self.context.is_main:
            tidy(self.checkpoints)
            shutil.rmtree(work, ignore_errors=True)
        collectives.barrier()
        problem, staged = "", None
        try:
            work.mkdir(parents=True, exist_ok=True)
            collectives.barrier()
            pieces = agreed(_pieces(model, optimizer), self.context.rank)
            staged = self._staging.stage(pieces, work, with_optimizer=optimizer is not None, copy=background)
            write_saved(random_state(), work / random_file(self.context.rank))
        except FAILURES as error:
            problem = _plainly(error)
        self._fail_together(work, target, problem)
        assert staged is not None
        layout = dataclasses.asdict(self.context.config) | {"world_size": self.context.world_size}
        updates = None if optimizer is None else _optimizer_step(optimizer)
        self._save = _Save(work, target, step, staged, model.ring_config, layout, extra, updates, files or {})
        self._thread = threading.Thread(target=self._write, args=(self._save,), daemon=True, name="checkpoint")
        self._thread.start()
        if not background:
            self.wait()
        return target

    def reserve(self, model: RingModel, optimizer: Any) -> None:
        """Begin to get the host memory that saves will take (on CUDA), so that the first one does not wait for it. Call it
        when model and optimizer have all that they will have on the device."""
        if self.background:
            self._staging.reserve(_pieces(model, optimizer if self._with_optimizer else None))

    @property
    def busy(self) -> bool:
        """Whether this process is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise `UserError` if the save under way has failed, without waiting for it or for other ranks."""
        if self._save is not None and self._save.problem:
            raise UserError(self._message(self._save.target, self._save.problem))

    def wait(self) -> None:
        """Wait until the save under way is whole on disk; all ranks take part. Raises `UserError` if it failed."""
        if self._save is None or self._thread is None:
            return
        self._thread.join()
        save, self._save, self._thread = self._save, None, None
        self._fail_together(save.work, save.target, save.problem)

    def _fail_together(self, work: Path, target: Path, problem: str) -> None:
        problem = next((p for p in collectives.gather_over_world(problem) if p), "")
        if problem:
            if self.context.is_main:
                shutil.rmtree(work, ignore_errors=True)
            raise UserError(self._message(target, problem))

    def _message(self, target: Path, problem: str) -> str:
        before = latest_or_none(self.checkpoints)
        return f"{target}: saving failed: {problem}; {f'{before.name} is intact' if before else 'there was none before'}"

    def _write(self, save: _Save) -> None:
        """What the thread does."""
        try:
            try:
                receipt: tuple[Any, ...] = (save.staged.write(), _write_files(save) | save.staged.writer.checksums, "")
            except FAILURES as error:
                receipt = (None, {}, _plainly(error))
            _leave_receipt(save.work, self.context.rank, receipt)
            if receipt[2]:
                raise OSError(receipt[2])
            if self.context.is_main:
                self._finish(save)
        except FAILURES as error:
            save.problem = _plainly(error)

    def _finish(self, save: _Save) -> None:
        """The main process: wait for all ranks, then make the folder a checkpoint."""
        receipts = [_await_receipt(save.work, rank) for rank in range(self.context.world_size)]
        for _, _, problem in receipts:
            if problem:
                raise OSError(problem)
        save.staged.finish([results for results, _, _ in receipts])
        checksums = {name: crc for _, summed, _ in receipts for name, crc in summed.items()} | save.staged.writer.checksums
        for rank in range(self.context.world_size):
            (save.work / f".rank_{rank}").unlink()
        more: dict[str, Any] = {} if save.optimizer_step is None else {"optimizer_step": save.optimizer_step}
        numbered = save.target.name == f"step_{save.step}"
        if numbered:
            more["line"] = line_to(self.checkpoints, save.step)
        write_manifest(save.work, save.model, save.step, save.layout, save.extra, checksums, VERSIONS | more)
        if not numbered:
            return publish(save.work, save.target)
        publish_checkpoint(save.work, save.target)
        if self._note is not None:
            with contextlib.suppress(OSError):  # the checkpoint is whole all the same
                self._note.write_text(save.target.name + "\n")
        if self.keep_last:
            prune(self.checkpoints, more["line"], self.keep_last)


def _pieces(model: RingModel, optimizer: Any) -> list[Piece]:
    pieces = weight_pieces(model)
    if optimizer is not None:
        allocate_moments(optimizer)
        pieces += optimizer_pieces(optimizer, model, masters=has_masters(optimizer))
    return pieces


def save_checkpoint(
    checkpoints: Path, step: int, model: RingModel, optimizer: Any, context: ParallelContext, extra: dict[str, Any],
    keep_last: int | None = None,
) -> Path:  # fmt: skip
    """Save one checkpoint and wait for it; see `CheckpointSaver.save`."""
    return CheckpointSaver(checkpoints, context, keep_last, background=False).save(step, model, optimizer, extra)


def _write_files(save: _Save) -> dict[str, list[str]]:
    """Their checksums."""
    checksums = {}
    for name, data in save.files.items():
        with DirectWriter(save.work / name) as file:
            file.write(data)
        checksums[name] = file.checksums
    save.files = {}  # not held until the next save
    return checksums


def _leave_receipt(work: Path, rank: int, receipt: tuple[Any, ...]) -> None:
    draft = work / f".rank_{rank}.tmp"
    draft.write_bytes(pickle.dumps(receipt))
    os.replace(draft, work / f".rank_{rank}")


def _await_receipt(work: Path, rank: int) -> tuple[Any, dict[str, list[str]], str]:
    path = work / f".rank_{rank}"
    while not path.exists():
        time.sleep(0.02)
    results, checksums, problem = pickle.loads(path.read_bytes())  # written by a process of this run
    return results, checksums, problem
