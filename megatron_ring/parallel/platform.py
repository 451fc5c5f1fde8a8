"""Under megatron-core: quiet, and on a machine without CUDA the CPU platform."""

from __future__ import annotations

import logging
import sys
import warnings

import torch

from megatron_ring.parallel import cpu_platform

HOW = "call megatron_ring.parallel.prepare() before the rooms that build on megatron-core are imported"


def prepare() -> None:
    """What `megatron_ring.parallel.prepare` does.

    Warnings of megatron-core about optional packages are silenced (tools/doctor.py says what is installed), as are torch's
    about collective names that megatron-core still uses.
    """
    if not torch.cuda.is_available() and not cpu_platform.is_applied():
        if "megatron.core" in sys.modules:
            raise RuntimeError(f"megatron-core was imported on a machine without CUDA as if it had one: {HOW}")
        cpu_platform.apply()
    for name in ("megatron", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}\..*")


def require_prepared() -> None:
    """Raise `RuntimeError` on a machine without CUDA where nobody has called `prepare`."""
    if not torch.cuda.is_available() and not cpu_platform.is_applied():
        raise RuntimeError(f"megatron-core cannot work on a machine without CUDA as it is: {HOW}")
