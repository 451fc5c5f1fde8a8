"""Errors that a user can cause, and how a main ends on one: a single line on stderr and exit status 2."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from megatron_ring.garbage import search_seldom
from megatron_ring.lifetime import die_with_torchrun

SECONDS_OF_SILENCE = 60.0


class UserError(Exception):
    """A mistake in flags, files or data. The message is one line: it names the file, line or flag and the mend."""


class RequestError(UserError):
    """A request that cannot be served, said on every rank before anything is done for it: others still can be."""


class MemoryRanOutError(UserError):
    """A GPU has no memory left for what is asked of it."""


class NotFiniteError(UserError):
    """The model's weights are broken: what it computes is not finite."""


class StoppedByAlarm(Exception):
    """A run that ended itself because an alarm went off. The message is one line."""


class StoppedBySignal(Exception):
    """A run that was asked to end and has saved what it could. The message is one line; empty where all is said."""


STOPPED_BY_ALARM = 3
STOPPED_BY_SIGNAL = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an `OSError` within it say which file it is about: writing to an open file does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def say(speaker: str, line: str) -> None:
    """Print a line of a long work, in one write."""
    print(f"{speaker}: {line}\n", end="", flush=True)


def _leave_process_group(alone: bool = False) -> None:
    """Take down the process group that a main may have set up, without importing torch for it. `alone`: only a group of this
    process alone, as others may be waiting in one."""
    context = sys.modules.get("megatron_ring.parallel.context")
    if context is not None and not (alone and context.world_size_from_environment() > 1):
        context.shutdown()


def _end(status: int) -> NoReturn:
    """End a main early. A gloo group that is left to the end of the process aborts it now and then, and with it the exit
    status."""
    _leave_process_group(alone=True)
    raise SystemExit(status) from None


def _first_of_this_launch() -> bool:
    """Whether no other process of the same launcher, on this machine, has asked before. A file that can be made only once
    decides: the processes may know nothing of each other yet. It goes away with the launcher."""
    launcher = os.getppid()
    name = f"ring-error-{os.getuid()}-{launcher}-{os.environ.get('MASTER_PORT', '')}"
    try:
        path = Path(tempfile.gettempdir()) / name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        _remove_with(launcher, path)
    except FileExistsError:
        return False
    except OSError:  # no place to write to: better twice than not at all
        return True
    return True


def _remove_with(launcher: int, path: Path) -> None:
    """Leave a process behind that removes `path` as soon as the launcher has ended, whatever ended it."""
    program = 'while kill -0 "$0" 2>/dev/null; do sleep 0.1; done; rm -f "$1"'
    command, none = ["/bin/sh", "-c", program, str(launcher), str(path)], subprocess.DEVNULL
    subprocess.Popen(command, stdin=none, stdout=none, stderr=none, start_new_session=True)


def _say_once(message: str) -> None:
    """Print an error. When all ranks fail alike one of them speaks, at once; another speaks only if torchrun has not ended
    it after a while (the file was of an earlier launch, then)."""
    rank = os.environ.get("RANK")
    if rank is not None and not _first_of_this_launch():
        time.sleep(SECONDS_OF_SILENCE)
    print(f"error: {message}" + (f" (rank {rank})" if rank not in (None, "0") else ""), file=sys.stderr, flush=True)


# What a file system does to a program that is not at fault: read-only, not ours, gone stale, in the way.
_OF_THE_PLACE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
                 errno.EFBIG, errno.EXDEV)  # fmt: skip


def _mend(error: OSError) -> str | None:
    """What a user can do about the machine's files, in one line; None where that is not the trouble."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'disk'}: {error.strerror}; free some space, then continue with the same command"
    if error.errno in _OF_THE_PLACE and error.filename:
        return f"{error.filename}: {error.strerror}; mend that, then continue with the same command"
    if error.errno == errno.ENOENT and str(error.strerror).startswith("No usable temporary directory"):
        return "no temporary folder can be written to: set TMPDIR to one that can"
    return None


def run_main(main: Callable[[], None]) -> None:
    """Run a main; turn `UserError` into one line on stderr and exit status 2, an alarm into one and status 3, a signal that
    asked for the end into status 75, Ctrl-C into status 130."""
    die_with_torchrun()
    search_seldom()
    try:
        main()
        _leave_process_group()
    except UserError as error:
        _say_once(" ".join(str(error).split()))
        _end(2)
    except StoppedByAlarm as error:
        _say_once(" ".join(str(error).split()))
        _end(STOPPED_BY_ALARM)
    except StoppedBySignal as stopped:
        if str(stopped):
            print(" ".join(str(stopped).split()), file=sys.stderr, flush=True)
        _end(STOPPED_BY_SIGNAL)
    except OSError as error:
        message = _mend(error)
        if message is None:
            raise
        _say_once(message)
        _end(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        _end(130)
