"""The device of this process, and its random state."""

from __future__ import annotations

import random
import resource
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch


def has_cuda() -> bool:
    """Whether training runs on CUDA devices; otherwise on the CPU over gloo."""
    return torch.cuda.is_available()


def current_device() -> torch.device:
    """The device that parameters live on."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


@cache
def capability(device: torch.device) -> int | None:
    """Of a GPU, the first number of its compute capability; None of a CPU."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None


@cache
def program_memory(device: torch.device) -> int | None:
    """Bytes of shared memory that a program (CUDA's thread block) of a GPU can have; None of a CPU."""
    if device.type != "cuda":
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)


def is_hopper(device: torch.device) -> bool:
    """Whether it is a GPU of compute capability 9."""
    return capability(device) == 9


def free_memory() -> int | None:
    """Bytes that can still be allocated on the current CUDA device, what torch keeps unused included; None on a CPU."""
    if not has_cuda():
        return None
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + unused


def untaken_memory() -> int:
    """Bytes of the current CUDA device that nobody has taken, torch's unused ones not counted; 0 on a CPU."""
    return int(torch.cuda.mem_get_info()[0]) if has_cuda() else 0


def return_unused_memory() -> None:
    """Give what torch keeps unused back to the CUDA device, where the next large tensor may come to lie in one piece."""
    if has_cuda():
        torch.cuda.empty_cache()


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a CUDA device; 3 elsewhere, where Triton's interpreter runs one program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def synchronize() -> None:
    """Wait until the device has done what was asked of it on the current stream."""
    if has_cuda():
        torch.cuda.current_stream().synchronize()


def moved_to(value: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`value.to(device)`; where that is another memory, without waiting for what the device still has to do."""
    if torch.device(device).type == "cuda" and not value.is_cuda and value.numel():
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device)


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers of the host on the device, as `moved_to` brings them there. `torch.tensor(values, device=device)` waits."""
    return moved_to(torch.tensor(values, dtype=dtype), device)


class HostCopy:
    """A tensor of the device on its way to the host, behind what the device does now but not what it is given later."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: Any = None
        if not tensor.is_cuda:
            self._host = tensor.clone()  # what is given to the device later may write there
        else:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.contiguous(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def tensor(self) -> torch.Tensor:
        """It, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._host

    def read(self) -> list[Any]:
        """Its numbers."""
        numbers: list[Any] = self.tensor().tolist()
        return numbers


def random_state() -> dict[str, Any]:
    """Every random generator's state, as tensors and plain numbers."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(internal), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
    }
    if has_cuda():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo what has been drawn since `random_state`."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and has_cuda():
        torch.cuda.set_rng_state(state["cuda"])


def reset_peak_memory() -> None:
    """Let `peak_memory` look from now on; a CPU's process cannot."""
    if has_cuda():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Bytes at the peak: `allocated` to tensors and `reserved` by torch on the current CUDA device since
    `reset_peak_memory`; on a CPU `rss`, resident in this process since it began."""
    if has_cuda():
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
