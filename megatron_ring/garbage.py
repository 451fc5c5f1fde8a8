"""Python's garbage collector where very many objects stay: what it does not find takes its time all the same."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_keeping = False
_USUAL = gc.get_threshold()
_OBJECTS_WHILE_LOADING = 50_000  # made before the next search


def search_seldom() -> None:
    """For the start of a program, until its layout is set up (`search_as_usual`): torch, megatron-core and what is on them
    make half a million objects that stay. Searching them as they become more is a sixth of the time that they take to
    load."""
    gc.set_threshold(_OBJECTS_WHILE_LOADING, *_USUAL[1:])


def search_as_usual() -> None:
    """What `search_seldom` has changed is as it was: cycles may hold a GPU's memory from here on."""
    gc.set_threshold(*_USUAL)


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cycles meanwhile. It runs again and again as objects become more, walks all of them each time, and finds
    nothing: of 100,000 requests it made their opening take twice as long. Memory is freed as ever, but for cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def kept_what_is_there(looks: bool = True) -> Iterator[None]:
    """What has been made so far stays meanwhile: no search for cycles walks it. The modules of torch and its compiler alone
    are half a million objects. A walk over all of them holds the interpreter for some 0.2 s, in which a GPU runs out of
    work. Inside another such context nothing changes.

    Args:
        looks: search once before, so that what is garbage now does not stay.
    """
    global _keeping  # not the count of what is frozen: Python 3.12 begins with some
    if _keeping:
        yield
        return
    if looks:
        gc.collect()
    gc.freeze()
    _keeping = True
    try:
        yield
    finally:
        gc.unfreeze()
        _keeping = False
