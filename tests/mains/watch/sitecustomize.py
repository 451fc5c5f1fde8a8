"""Python imports this at its start when its folder is on PYTHONPATH: it freezes the process within a phase of an RL run.

`FREEZE=PHASE:STEP:MARKER`: a thread watches what the others do, as a debugger would, and as soon as one of them is inside
PHASE at the 0-based STEP or later it creates the file MARKER and stops the process where it stands. The program itself runs
unchanged. Scoring may be over before such a thread looks again, where all rewards are there already: each call of the main
thread is traced instead, and that phase stops where it begins.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

# A phase is a function of a file. Most run below `rl.reinforce`, whose frame knows the step; a save's thread knows its own.
PHASES = {
    "sampling": ("sampler.py", "generate"),
    "scoring": ("scoring.py", "finish"),
    "training": ("trainer.py", "train_step"),
    "saving": ("saving.py", "_write"),
}


def _step_inside(frame: FrameType | None, phase: str) -> int:
    """The step in which a thread is inside `phase`; -1 if it is not."""
    inside, step = False, -1
    while frame is not None:
        code = frame.f_code
        name = (os.path.basename(code.co_filename), code.co_name)
        if name == PHASES[phase]:
            inside = True
            if phase == "saving":
                step = frame.f_locals["save"].step
        elif name == ("rl.py", "reinforce"):
            step = frame.f_locals["step"]
        frame = frame.f_back
    return step if inside else -1


def _freeze(marker: Path) -> None:
    marker.touch()
    os.kill(os.getpid(), signal.SIGSTOP)


def _watch(phase: str, step: int, marker: Path) -> None:
    me = threading.get_ident()
    while True:
        for thread, frame in list(sys._current_frames().items()):
            if thread != me and _step_inside(frame, phase) >= step:
                _freeze(marker)
        time.sleep(0.0005)


def _trace(phase: str, step: int, marker: Path) -> None:
    def called(frame: FrameType, *_: object) -> None:
        if frame.f_code.co_name == PHASES[phase][1] and _step_inside(frame, phase) >= step:
            _freeze(marker)

    sys.settrace(called)


if "FREEZE" in os.environ and os.environ.get("RANK", "0") == "0":
    _phase, _step, _marker = os.environ["FREEZE"].split(":", 2)
    if _phase == "scoring":
        _trace(_phase, int(_step), Path(_marker))
    else:
        sys.setswitchinterval(0.0005)
        threading.Thread(target=_watch, args=(_phase, int(_step), Path(_marker)), daemon=True).start()
