"""Errors that a user can cause, and how a main ends on one: a single line on stderr and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in flags, files or data. The message is one line: it names the file, line or flag and the mend."""


def _leave_process_group() -> None:
    """Take down the process group that a main may have set up, without importing torch for it."""
    context = sys.modules.get("megatron_ring.parallel.context")
    if context is not None:
        context.shutdown()


def run_main(main: Callable[[], None]) -> None:
    """Run a main; turn `UserError` into one line on stderr and exit status 2, Ctrl-C into status 130."""
    try:
        main()
        _leave_process_group()
    except UserError as error:
        message = " ".join(str(error).split())
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
