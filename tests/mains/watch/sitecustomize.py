"""Python imports this at its start when its folder is on PYTHONPATH: it freezes the process within a phase of a run.

`FREEZE` in the environment is a JSON object: as soon as the function `function` of `file` has begun when the file
`metrics` has at least `lines` lines, and as many as `calls` other Python functions have been called from within it, the
file `marker` is created and the process stops where it stands. If the function makes fewer calls, it stops where that
returns. Every call is seen, on all threads, so that no phase is too short to be found. The program itself runs unchanged.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

Tracer = Callable[[FrameType, str, Any], Any]


def freeze(file: str, function: str, metrics: str, lines: int, calls: int, marker: str) -> Tracer:
    """The trace function of every thread."""
    left: dict[int, int] = {}  # by thread that is inside: calls until it is deep enough

    def stop() -> None:
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGSTOP)

    def within(frame: FrameType, event: str, _: Any) -> Tracer:
        if event == "return":
            stop()
        return within

    def called(frame: FrameType, event: str, _: Any) -> Tracer | None:
        if not left and frame.f_code.co_qualname != function:  # most calls by far
            return None
        thread = threading.get_ident()
        if thread in left:
            left[thread] -= 1
            if not left[thread]:
                stop()
        elif frame.f_code.co_qualname == function and frame.f_code.co_filename == file and recorded(metrics) >= lines:
            left[thread] = calls
            frame.f_trace_lines = False
            return within
        return None

    return called


def recorded(metrics: str) -> int:
    """Steps that a run has recorded so far."""
    try:
        return Path(metrics).read_bytes().count(b"\n")
    except OSError:
        return 0


# torchrun itself has nothing to freeze, and the verifiers of a rank inherit its environment without this.
if "FREEZE" in os.environ and "torch.distributed.run" not in sys.orig_argv:
    _asked = json.loads(os.environ.pop("FREEZE"))
    if os.environ.get("RANK", "0") == "0":
        _tracer = freeze(**_asked)
        threading.settrace(_tracer)
        sys.settrace(_tracer)
