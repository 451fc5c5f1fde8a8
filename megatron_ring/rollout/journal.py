"""Responses and scores as they come, one line each, so that an evaluation goes on after a kill where it stood.

Each replica's leader adds lines to a file of its own; the main process reads those of all. A line that a kill has cut is
dropped, and its response sampled again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from megatron_ring.data.records import Message
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError

Key = tuple[str, str, int]  # benchmark, problem, sample


class Journal:
    """One leader's file. Use as a context manager."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"replica-{rank}.jsonl"
        self._stream: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_cut_line(self._path)
            self._stream = self._path.open("ab")
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from None
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line, which a kill of this process leaves whole. Of what JSON has no word for it may hold messages. Raises
        `UserError`."""
        assert self._stream is not None
        try:
            self._stream.write(f"{json.dumps(row, default=Message.to_json)}\n".encode())
            self._stream.flush()
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}: free some space, then run it again") from None


def read_journals(folder: Path) -> tuple[dict[Key, dict[str, Any]], dict[Key, dict[str, Any]]]:
    """All responses, and all scores, by their key. Raises `UserError` for a line that no evaluation wrote."""
    responses: dict[Key, dict[str, Any]] = {}
    scores: dict[Key, dict[str, Any]] = {}
    for path in sorted(folder.glob("replica-*.jsonl")):
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    continue  # cut by a kill, or being written
                try:
                    row = json.loads(line)
                    target = responses if "response" in row else scores
                    target[row["benchmark"], row["id"], row["sample"]] = row
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}:{number}: not a line of an evaluation: remove it and run again") from None
    return responses, scores


def judge_file(folder: Path, fingerprint: str) -> Path:
    """Where the scores of a judge lie."""
    return folder / f"judge-{fingerprint}.jsonl"


def read_scores(folder: Path, judge: str | None) -> dict[Key, dict[str, Any]]:
    """All scores, those of the judge with this fingerprint included. Raises `UserError` as `read_journals`."""
    scores = read_journals(folder)[1]
    if judge is None:
        return scores
    path = judge_file(folder, judge)
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return scores | {(row["benchmark"], row["id"], row["sample"]): row for row in rows}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{path}: not the scores of a judge: run the evaluation again") from None


def settle_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Write what decides the responses of this folder, or compare it with what is there. Raises `UserError` where it
    differs."""
    path = folder / "evaluation.json"
    wanted = json.loads(json.dumps(identity, default=str))
    if not path.exists():
        write_atomically(path, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not JSON: remove the folder, or choose another --out")
    different = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    if different:
        raise UserError(f"--out {folder} holds an evaluation with another {min(different)}: choose another folder")


def _drop_cut_line(path: Path) -> None:
    """Remove a last line that has no end."""
    if not path.exists():
        return
    with path.open("rb+") as stream:
        size = stream.seek(0, 2)
        position = size
        while position > 0:
            begin = max(0, position - (1 << 16))
            stream.seek(begin)
            found = stream.read(position - begin).rfind(b"\n")
            if found >= 0:
                position = begin + found + 1
                break
            position = begin
        if position != size:
            stream.truncate(position)
