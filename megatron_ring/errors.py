"""Errors that a user can cause, and how a main ends on one: a single line on stderr and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in flags, files or data. The message is one line: it names the file, line or flag and the mend."""


def run_main(main: Callable[[], None]) -> None:
    """Run a main; turn `UserError` into one line on stderr and exit status 2, Ctrl-C into status 130."""
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
