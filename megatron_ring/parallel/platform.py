"""Imports megatron-core the way this project needs it: quietly, and on the CPU platform where there is no CUDA."""

from __future__ import annotations

import logging
import warnings

import torch

from megatron_ring.parallel import cpu_platform


def prepare() -> None:
    """Import megatron-core with the CPU platform under it where CUDA is absent. Idempotent.

    Its import-time warnings about optional packages are silenced (tools/doctor.py says what is installed), as are
    torch's about collective names that megatron-core still uses.
    """
    if not torch.cuda.is_available():
        cpu_platform.apply()
    logging.getLogger("megatron").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"megatron\..*")
    warnings.filterwarnings("ignore", module=r"torch\.distributed\..*")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import megatron.core
        import megatron.core.optimizer
        import megatron.core.tensor_parallel  # noqa: F401
    if not torch.cuda.is_available():
        cpu_platform.apply_to_megatron()
