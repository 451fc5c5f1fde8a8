"""One gloo device for all groups of a process. torch gives each group a device of its own, whose thread wakes a hundred
times a second: megatron-core makes some twenty, and small ranks spend a part of the machine on waiting."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


def share_device() -> None:
    """Have the groups that this process makes from now on use the device of its default group. Idempotent."""
    group: Any = dist.ProcessGroupGloo
    original = group.__init__
    if hasattr(original, "shares_device"):
        return
    default: Any = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    try:
        devices, new_options = default.options._devices, group._Options
    except AttributeError:  # torch has no public way to say this: another release may not have this one
        return

    def on_the_device(self: Any, store: Any, rank: int, size: int, timeout: Any = dist.default_pg_timeout) -> None:
        options = timeout
        if isinstance(timeout, timedelta):
            options = new_options()
            options._timeout, options._devices, options._threads = timeout, devices, 2 * len(devices)  # as torch has them
        original(self, store, rank, size, options)

    on_the_device.shares_device = True  # type: ignore[attr-defined]
    group.__init__ = on_the_device
    # A device's thread is not there after a fork.
    os.register_at_fork(after_in_child=lambda: setattr(group, "__init__", original))
