"""Programmatic dependent launch: programs of a kernel take free places while the last programs of the kernel before it still
run, and wait there for its end. Between short kernels that saves the time of a launch.

Every kernel that takes part begins with `dependent_triton.begin`, before it reads or writes anything. So each kernel runs
behind all kernels before it, as always. It takes a GPU of compute capability 9 or more.

One waits for less: a program of experts' second product for those of its own expert's first product, which count themselves
(`tell_made`, `await_made`), not for the last of all experts. So the device is not idle between both. What came before the
first product has ended then, too. The kernel as a whole still ends behind the first product (`end_behind`): a kernel waits
for the one before it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megatron_ring.parallel.device import capability, current_device

_on = False


@contextmanager
def dependent_launches(wanted: bool = True) -> Iterator[None]:
    """Meanwhile kernels that take part are launched so, where the device can."""
    global _on
    before, _on = _on, wanted and (capability(current_device()) or 0) >= 9
    try:
        yield
    finally:
        _on = before


def launch_options() -> dict[str, Any]:
    """For the launch of a kernel whose last argument is `DEPENDENT`."""
    return {"DEPENDENT": True, "launch_pdl": True} if _on else {"DEPENDENT": False}
