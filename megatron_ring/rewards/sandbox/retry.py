"""Runs that say nothing about their program are tried again: the machine failed, or had no processor left for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from megatron_ring.rewards.sandbox.failure import MachineFailure
from megatron_ring.rewards.sandbox.side_by_side import wait_or_stop

PAUSES = (0.1, 0.5, 2.0)  # seconds before each further try
ALONE_WAIT = 10.0  # seconds; longer nobody waits for the others that are to run alone

_Result = TypeVar("_Result")


def steadily(attempt: Callable[[bool], _Result], starved: Callable[[_Result], bool]) -> _Result:
    """The result of `attempt(alone)`, where the machine allows one.

    A failure of the machine is followed by another try, up to as many times as there are pauses. A result that is
    `starved` is replaced by that of a second try, alone: ahead of all other runs on this machine, and beside fewer of its
    kind than there are processors. That one decides: a program can starve itself, with many processes.

    Raises:
        MachineFailure: every try failed.
    """
    result = _tried(lambda: attempt(False))
    if starved(result):
        with turn():
            result = _tried(lambda: attempt(True))
    return result


def _tried(attempt: Callable[[], _Result]) -> _Result:
    problem = ""
    for pause in (*PAUSES, None):
        try:
            return attempt()
        except MachineFailure as error:
            problem = str(error)
        except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: no further thread can be started
            problem = f"{type(error).__name__}: {error}"
        if pause is not None:
            wait_or_stop(pause)
    raise MachineFailure(problem)


@contextmanager
def turn(wait: Callable[[float], object] = wait_or_stop) -> Iterator[None]:
    """Hold one of the places of those that run alone on this machine, one for every two processors; without one after
    `ALONE_WAIT` seconds. A place is the lock of a source file of this installation, so that no file is left anywhere.
    `wait` sleeps so many seconds."""
    places = sorted(Path(__file__).parent.glob("*.py"))[: max(1, (os.cpu_count() or 1) // 2)]
    deadline = time.monotonic() + ALONE_WAIT
    with contextlib.ExitStack() as stack:
        held = False
        while not held and time.monotonic() < deadline:
            held = any(_take(place, stack) for place in places)
            if not held:
                wait(0.05)
        yield


def _take(place: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file until the stack is closed; True where it cannot be locked at all, for then nobody has it."""
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks
        os.close(descriptor)
        return True
    stack.callback(os.close, descriptor)
    return True
