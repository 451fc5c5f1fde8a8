"""Processes that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process killed when its parent ends, whatever it is doing then. Linux; elsewhere nothing happens."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_torchrun() -> None:
    """`die_with_parent` for a process that torchrun started: it gives each a session of its own, so that killed it would
    leave them behind, computing on, with a GPU's memory each. For the beginning of a main: it does not help later."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        parent = os.getppid()
        die_with_parent()
        if os.getppid() != parent:  # it died before that took effect
            raise SystemExit(1)
