"""Libraries that few answers need and that take most of a second to load. A worker says when it begins to load one, and when
that is done: the time is not the item's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[bool], None] | None] = ContextVar("listener", default=None)


def tell_when_loading(listener: Callable[[bool], None]) -> None:
    """Have `listener` called with True before a library is loaded in this thread, and with False when that is over."""
    _listener.set(listener)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around the loading of a library."""
    tell = _listener.get() or (lambda begins: None)
    tell(True)
    try:
        yield
    finally:
        tell(False)
