"""Libraries that few answers need and that take most of a second to load. A worker says when it begins to load one, and when
that is done: the time is not the item's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from megatron_ring.errors import UserError
from megatron_ring.rewards.sandbox.failure import MachineFailure

_listener: ContextVar[Callable[[bool], None] | None] = ContextVar("listener", default=None)


def tell_when_loading(listener: Callable[[bool], None]) -> None:
    """Have `listener` called with True before a library is loaded in this thread, and with False when that is over."""
    _listener.set(listener)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Around the loading of a library.

    Raises:
        UserError: it is not installed as it should be.
        MachineFailure: anything else has kept it from being loaded, such as too little memory.
    """
    tell = _listener.get() or (lambda begins: None)
    tell(True)
    try:
        yield
    except ImportError as error:
        raise UserError(f"a verifier cannot be loaded ({error}): reinstall the project's requirements") from None
    except Exception as error:
        raise MachineFailure(f"a library could not be loaded: {type(error).__name__}") from None
    finally:
        tell(False)
