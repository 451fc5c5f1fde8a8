"""One run at a time in a run directory: a lock that the kernel releases when its process ends, whatever ends it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from megatron_ring.errors import UserError

NAME = ".lock"
SECONDS_TO_WAIT = 3.0  # for a run that was killed a moment ago
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def take_lock(run_dir: Path, flag: str = "--run-dir") -> IO[str]:
    """Lock a run directory for as long as the file that this returns is open. The file has host and process of the holder.
    `flag` is the one that names the directory, for messages.

    Raises:
        UserError: another run holds it.
        OSError: it cannot be made.
    """
    file = (run_dir / NAME).open("a+")
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            file.seek(0)
            holder = file.read(200).strip() or "of an unknown process"
            file.close()
            raise UserError(
                f"{flag} {run_dir}: another run is going on in it ({holder}); wait for its end, stop it, or choose "
                f"another {flag}"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            print(f"warning: {run_dir}: its file system has no locks: nothing stops a second run here", file=sys.stderr)
            break
    with contextlib.suppress(OSError):  # on a full disk; the lock holds all the same
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
    return file


def hold_lock(out: Path, held: ExitStack) -> None:
    """Keep other evaluations out of --out until `held` ends. Raises as `take_lock`."""
    held.enter_context(take_lock(out, "--out"))
