"""The folder of a run's checkpoints: which are whole, which one `latest` names, what is ours to remove.

A whole checkpoint is a folder `step_N` with a manifest. Anything else in there is a stray: it is never read, and never
removed; one that lies where a checkpoint is to be saved is moved aside. Of several processes rank 0 reads the folder
(`collectives.from_main`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_ring.checkpoint.manifest import NAME as MANIFEST
from megatron_ring.checkpoint.manifest import make_durable, read_manifest
from megatron_ring.errors import UserError

_STEP = re.compile(r"step_(0|[1-9][0-9]*)")
_LEFTOVER = re.compile(r"\.step_[0-9]+\.(tmp|old[0-9]*)")  # of a save, or of a removal, that was killed
SHOWN = 6


def step_of(path: Path) -> int | None:
    """N of a path `…/step_N`; None for any other name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def is_whole(path: Path) -> bool:
    """Whether `path` is named as a checkpoint and was saved to its end."""
    return step_of(path) is not None and (path / MANIFEST).is_file()


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """All whole checkpoints, the oldest step first."""
    found = [path for path in checkpoints.iterdir() if is_whole(path)] if checkpoints.is_dir() else []
    return sorted(found, key=lambda path: step_of(path) or 0)


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where no checkpoint is whole.

    Raises:
        UserError: `latest` names no whole checkpoint, and others are: only the user knows which one is meant.
    """
    named, problem = _named(checkpoints)
    if named is not None:
        try:
            read_manifest(named)
        except UserError as error:
            raise UserError(f"{error}{instead_of(named)}") from None
        return named
    whole, pointer = whole_checkpoints(checkpoints), checkpoints / "latest"
    if not os.path.lexists(pointer) and (interrupted := _interrupted(checkpoints)) is not None:
        return interrupted
    if not whole and (pointer.is_symlink() or not pointer.is_dir()):
        return None
    raise UserError(f"{pointer}: {problem}{_choice(checkpoints, whole)}")


def latest_or_none(checkpoints: Path) -> Path | None:
    """The whole checkpoint that `latest` names; None where there is none."""
    return _named(checkpoints)[0]


def checkpoint_folder(source: Path) -> Path:
    """`source`; or, where it is a run's `checkpoints/latest`, the checkpoint that it names now.

    Raises:
        UserError: it names none, and the run has others.
    """
    if source.name != "latest" or not (source.is_file() or source.is_symlink()):
        return source
    if (named := latest_or_none(source.parent)) is not None:
        return named
    if source.is_dir():  # a link to some other folder is that folder
        return source
    latest_checkpoint(source.parent)
    return source.parent / _text(source)[0]


def _text(pointer: Path) -> tuple[str, str]:
    """What `latest` says; or "" and what is wrong with it."""
    try:
        if pointer.is_symlink() and not pointer.is_file():
            text = os.readlink(pointer)
        elif pointer.is_dir():
            return "", "is a folder, not a file with a checkpoint's name"
        else:
            text = pointer.read_text()
    except FileNotFoundError:
        return "", "there is no such file"
    except UnicodeDecodeError:
        return "", "is not text"
    except OSError as error:
        return "", f"cannot be read: {error.strerror}"
    text = text.strip()
    if not text or "\n" in text or "\0" in text:
        return "", "does not hold one checkpoint's name"
    return text, ""


def _named(checkpoints: Path) -> tuple[Path | None, str]:
    """The whole checkpoint that `latest` names; or None and what is wrong."""
    text, problem = _text(checkpoints / "latest")
    if problem:
        return None, problem
    target = checkpoints / text
    try:
        inside = target.parent.resolve() == checkpoints.resolve()
        named = checkpoints / target.name
        if inside and is_whole(named):
            return named, ""
    except OSError:  # a name too long for a file
        pass
    return None, f"names {text[:80]}, which is no whole checkpoint here"


def _choice(checkpoints: Path, whole: Sequence[Path]) -> str:
    """How to choose among the whole ones, for the end of a message."""
    pointer = checkpoints / "latest"
    if not whole:
        return "; remove it"
    names = ", ".join(path.name for path in whole[-SHOWN:])
    more = f" and {len(whole) - SHOWN} older" if len(whole) > SHOWN else ""
    quoted = shlex.quote(str(pointer))
    first = f"rm -r {quoted}; " if pointer.is_symlink() or pointer.is_dir() else ""
    return f"; whole checkpoints: {names}{more}; to go on from the newest: {first}echo {whole[-1].name} > {quoted}"


def instead_of(checkpoint: Path) -> str:
    """Which other checkpoints of its folder are whole, for the end of a message that refuses this one; empty without any."""
    others = [path for path in whole_checkpoints(checkpoint.parent) if path != checkpoint]
    return _choice(checkpoint.parent, others) if others else ""


def _interrupted(checkpoints: Path) -> Path | None:
    """The checkpoint of a first save that was killed when it was whole and `latest` about to be written."""
    text, problem = _text(_draft_pointer(checkpoints))
    return checkpoints / text if not problem and is_whole(checkpoints / text) else None


def _draft_pointer(checkpoints: Path) -> Path:
    return checkpoints / ".latest.tmp"


def publish(work: Path, target: Path) -> None:
    """Give a finished folder its name. A checkpoint that had it before, as of a run that was set back, is removed."""
    make_durable(work)
    if is_whole(target):
        discard(target)
    elif os.path.lexists(target):
        os.replace(target, _aside(target))
    os.replace(work, target)
    make_durable(target.parent)


def _aside(stray: Path) -> Path:
    """A free name for what is no checkpoint, but is called like one."""
    return _free(stray.with_name(f"{stray.name}.stray"))


def _free(path: Path) -> Path:
    """`path` with the first number behind it that is free."""
    names = (path.with_name(f"{path.name}{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def publish_checkpoint(work: Path, target: Path) -> None:
    """`publish`, then let `latest` name it. A kill at any moment leaves `latest` as it was, or naming a whole checkpoint."""
    pointer = _draft_pointer(target.parent)
    _remove(pointer)
    pointer.write_text(target.name + "\n")
    make_durable(pointer)
    publish(work, target)
    os.replace(pointer, target.parent / "latest")
    make_durable(target.parent)


def line_to(checkpoints: Path, step: int) -> list[int]:
    """Steps of the checkpoints that the run passed to one at `step`, which is to be saved now, and its own. A run that was
    set back to an older checkpoint passed that one, but not those that were saved after it before."""
    before = latest_or_none(checkpoints)
    line = [_known_step(path) for path in whole_checkpoints(checkpoints)]
    if before is not None:
        with contextlib.suppress(UserError):  # damaged: its step must do
            line = read_manifest(before).get("line", [n for n in line if n <= _known_step(before)])
    return [*(passed for passed in line if passed < step), step]


def _known_step(path: Path) -> int:
    step = step_of(path)
    assert step is not None, path
    return step


def prune(checkpoints: Path, line: Sequence[int], keep_last: int) -> None:
    """Keep the last so many whole checkpoints of a line, and what `latest` names; never touch what is not of the line."""
    of_the_line = [path for path in whole_checkpoints(checkpoints) if step_of(path) in set(line)]
    latest = latest_or_none(checkpoints)
    for path in of_the_line[:-keep_last]:
        if path != latest and not path.is_symlink():
            with contextlib.suppress(OSError):  # it stays; the next save tries again
                discard(path)


def discard(path: Path) -> None:
    """Remove a checkpoint: it loses its name first, so that a kill leaves no half of one."""
    if not os.path.lexists(path):
        return
    doomed = path.with_name(f".{path.name}.old")
    _remove(doomed)
    if os.path.lexists(doomed):  # NFS keeps files that a process still has open
        doomed = _free(doomed)
    os.replace(path, doomed)
    _remove(doomed)


def tidy(checkpoints: Path) -> None:
    """Remove what killed saves and removals left, and end a first save that had only `latest` left to write. For the one run
    that writes here."""
    if not os.path.lexists(checkpoints / "latest") and _interrupted(checkpoints) is not None:
        os.replace(_draft_pointer(checkpoints), checkpoints / "latest")
    for path in list(checkpoints.iterdir()) if checkpoints.is_dir() else []:
        if _LEFTOVER.fullmatch(path.name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
