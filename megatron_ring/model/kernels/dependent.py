"""Programmatic dependent launch: programs of a kernel take free places while the last programs of the kernel before it still
run, and wait there for its end. Between short kernels that saves the time of a launch.

Every kernel that takes part begins with `dependent_triton.begin`, before it reads or writes anything. So each kernel runs
behind all kernels before it, as always. It takes a GPU of compute capability 9 or more.

A short kernel may also bring the weights of the product behind it into the L2 cache: memory has little else to do meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_ring.parallel.device import capability, current_device

_on = False
_next: torch.Tensor | None = None


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


@contextmanager
def reading_ahead(weight: torch.Tensor) -> Iterator[None]:
    """Meanwhile kernels that can bring `weight` into the cache, where they are launched early."""
    global _next
    before, _next = _next, weight if _on and weight.is_contiguous() and weight.nbytes % 16 == 0 else None
    try:
        yield
    finally:
        _next = before


def ahead_options(other: torch.Tensor) -> dict[str, Any]:
    """For the launch of a kernel that reads ahead (`dependent_triton.read_ahead`); `other` stands for nothing to read."""
    if _next is None:
        return {"ahead_ptr": other, "ahead_bytes": 0, "AHEAD": False}
    return {"ahead_ptr": _next, "ahead_bytes": _next.nbytes, "AHEAD": True}
