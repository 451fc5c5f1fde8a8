"""Errors that a user can cause, and how a main ends on one: a single line on stderr and exit status 2."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable

SECONDS_OF_SILENCE = 10.0


class UserError(Exception):
    """A mistake in flags, files or data. The message is one line: it names the file, line or flag and the mend."""


def _leave_process_group() -> None:
    """Take down the process group that a main may have set up, without importing torch for it."""
    context = sys.modules.get("megatron_ring.parallel.context")
    if context is not None:
        context.shutdown()


def _say_once(message: str) -> None:
    """Print an error from the first rank at once; from another only if it is still alive after a while: when all ranks
    fail alike, torchrun has ended it by then, even where a busy machine starts them seconds apart."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(SECONDS_OF_SILENCE)
    print(f"error: {message}" + (f" (rank {rank})" if rank != "0" else ""), file=sys.stderr, flush=True)


def run_main(main: Callable[[], None]) -> None:
    """Run a main; turn `UserError` into one line on stderr and exit status 2, Ctrl-C into status 130."""
    try:
        main()
        _leave_process_group()
    except UserError as error:
        _say_once(" ".join(str(error).split()))
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _say_once(f"{error.filename or 'disk'}: {error.strerror}; free some space, then continue with the same command")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
