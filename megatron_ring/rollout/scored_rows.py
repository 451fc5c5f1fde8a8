"""The rows of an evaluation of a prompt file, on disk as soon as they are scored: one that is killed goes on where it stood.

Each replica's leader adds rows to a file of its own in a folder that lasts until the result is written. What the same
command finds there it does not sample again. Another command is refused, unless it is told to remove them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.metadata import flag_of, names_of
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import UserError
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext
from megatron_ring.rewards.interface import has_verdict, is_graded
from megatron_ring.rollout.evaluation import Figures
from megatron_ring.rollout.journal import Journal
from megatron_ring.rollout.records import Key, ScoredRollout

FOLDER = "unfinished"
_ABOUT, _FILES = "evaluation.json", "replica-*.jsonl"
_PLACE = "place"  # of the prompt in its file


class Place(NamedTuple):
    """Where a row lies, and what is summed up of it."""

    path: Path
    start: int
    size: int
    figures: Figures


class ScoredRows:
    """The rows in an evaluation's folder. Use as a context manager; all ranks of the run do, and make all calls alike.

    Args:
        out: the evaluation's folder.
        identity: of all that decides the rows, by names that `flag_of_part` knows the flags of.
        row: a response as samples.jsonl is to have it.
        restart: remove what is there.

    Attributes:
        done: keys of the rows with a verdict that an earlier command has left.

    Raises:
        UserError: on every rank: the folder cannot be read or written, or holds rows of another evaluation.
    """

    def __init__(
        self, out: Path, identity: Mapping[str, Any], context: ParallelContext,
        row: Callable[[ScoredRollout], dict[str, Any]], restart: bool = False,
    ) -> None:  # fmt: skip
        self._folder, self._context, self._row = out / FOLDER, context, row
        self.done: set[Key] = set(collectives.from_main(lambda: _standing(self._folder, identity, restart)))
        self._journal = Journal(self._folder, context.data_rank)

    def __enter__(self) -> ScoredRows:
        if self._context.leads_replica:
            self._journal.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.__exit__(kind, value, trace)

    def add(self, item: ScoredRollout) -> None:
        """One of this replica's, by its leader. Raises `UserError`."""
        self._journal.write({_PLACE: item.rollout.prompt_index, **self._row(item)})

    def write(self, path: Path, count: int) -> list[Figures]:
        """Write all rows, `count`, in order, and say what they are; on the main process, once all ranks have added theirs.
        Raises `UserError`, also where rows are missing."""
        places = [place for _, place in sorted(_places(self._folder).items())]
        if len(places) != count:
            said = f"{self._folder}: {len(places):,} of {count:,} responses are here"
            raise UserError(f"{said}: let --out be a folder that the machines of all processes share")
        write_atomically(path, _lines(places))
        return [place.figures for place in places]

    def remove(self) -> None:
        """Once there is a result, and no rank adds any more; on the main process. Raises `UserError`."""
        try:
            _clear(self._folder)
            (self._folder / _ABOUT).unlink(missing_ok=True)
            with suppress(OSError):  # files of others are in it
                self._folder.rmdir()
        except OSError as error:
            raise UserError(f"cannot remove {self._folder}: {error.strerror}") from None


def _standing(folder: Path, identity: Mapping[str, Any], restart: bool) -> list[Key]:
    """The rows with a verdict that are there. Raises `UserError` for those of another evaluation."""
    about, text = folder / _ABOUT, f"{json.dumps(identity, indent=1, default=str)}\n".encode()
    try:
        there, found, wanted = _whole_lines(folder), _told(about), json.loads(text)
        other = None if found is None else _differing(found, wanted)
        if found is not None and other is None and not restart:
            return [key for key, place in _places(folder).items() if place.figures.has_verdict]
        if there and not restart:
            what = "command, which it does not tell" if found is None else _difference(str(other), found, wanted)
            raise UserError(
                f"--out {folder.parent}: {folder} holds {there:,} responses of an evaluation that has not ended, with "
                f"another {what}: give what it was begun with to go on, choose another --out, or remove them by --restart"
            )
        _clear(folder)
    except OSError as error:
        raise UserError(f"cannot read or remove {folder}: {error.strerror}") from None
    if there:
        print(f"evaluate: removed {there:,} responses from {folder}", flush=True)
    write_atomically(about, text)
    return []


def _told(about: Path) -> dict[str, Any] | None:
    """What the file tells of the evaluation; None where it tells nothing."""
    try:
        found = json.loads(about.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first name in which two evaluations differ. What another version did not tell of was not set then."""
    return next((name for name in (*wanted, *found) if wanted.get(name) != found.get(name)), None)


def _difference(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The flag of what differs, and what it was."""
    flag, was, now = flag_of_part(name), found.get(name), wanted.get(name)
    if "fingerprint" in name or "sha256" in name or name.startswith("rewards.") or name == "compositions":
        return f"{flag}, or other content of it"
    return f"{flag} ({json.dumps(was, ensure_ascii=False)}, now {json.dumps(now, ensure_ascii=False)})"


def flag_of_part(name: str) -> str:
    """The flag of what an evaluation's identity names."""
    special = {"checkpoint_fingerprint": "checkpoint", "prompts_sha256": "prompts", "sampling_weights": "sampling.weights",
               "sampling_activations": "sampling.activations"}  # fmt: skip
    if name == "tokenizer_fingerprint":
        return "--tokenizer or --chat-template"
    known, wanted = names_of(EvaluateConfig), special.get(name, name)
    return flag_of(next((one for one in (wanted, f"sampling.{wanted}", f"rewards.{wanted}") if one in known), wanted))


def _clear(folder: Path) -> None:
    """Remove the rows, and nothing else that may lie there."""
    for path in folder.glob(_FILES):
        path.unlink()


def _whole_lines(folder: Path) -> int:
    """How many rows are there."""
    found = 0
    for path in folder.glob(_FILES):
        with path.open("rb") as stream:
            found += sum(line.endswith(b"\n") for line in stream)
    return found


def _places(folder: Path) -> dict[Key, Place]:
    found: dict[Key, Place] = {}
    for path in sorted(folder.glob(_FILES)):
        start = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n"):  # else cut by a kill
                    key, place = _place(path, number, start, line)
                    if place.figures.has_verdict or key not in found:
                        found[key] = place
                start += len(line)
    return found


def _place(path: Path, number: int, start: int, line: bytes) -> tuple[Key, Place]:
    try:
        row = json.loads(line)
        detail = row.get("detail") or {}
        figures = Figures(
            str(row["domain"]), str(row["id"]), float(row["reward"]), int(row["tokens"]), row["finish_reason"],
            has_verdict(detail), is_graded(detail),
        )  # fmt: skip
        return (int(row[_PLACE]), int(row["sample"])), Place(path, start, len(line), figures)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}:{number}: not a row of an evaluation: remove {path.parent} and run again") from None


def _lines(places: list[Place]) -> Iterator[bytes]:
    with ExitStack() as held:
        streams = {path: held.enter_context(path.open("rb")) for path in {place.path for place in places}}
        for place in places:
            stream = streams[place.path]
            stream.seek(place.start)
            row = json.loads(stream.read(place.size))
            del row[_PLACE]
            yield f"{json.dumps(row)}\n".encode()
