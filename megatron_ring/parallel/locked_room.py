"""Page-locked host memory for a CUDA device, got in the background: locking gigabytes takes seconds."""

from __future__ import annotations

import mmap
import threading
import weakref
from collections.abc import Sequence

import torch

_ALIGNMENT = 4096
_PORTION = 64 << 20  # bytes touched at a time: other threads get their turn in between


class LockedRoom:
    """One piece of memory for tensors of these sizes. A thread gets it; where it fails nothing is there to take."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._size = sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)
        self._taken = 0
        self._bytes: torch.Tensor | None = None
        self._device = torch.cuda.current_device()
        self._thread = threading.Thread(target=self._get, daemon=True, name="locked-room")
        self._thread.start()

    def _get(self) -> None:
        try:
            room = mmap.mmap(-1, self._size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                room.madvise(mmap.MADV_HUGEPAGE)
            found = torch.frombuffer(room, dtype=torch.uint8)
            for start in range(0, self._size, _PORTION):  # touched here, what is locked below is there already
                found[start : start + _PORTION].zero_()
            torch.cuda.set_device(self._device)
            if int(torch.cuda.cudart().cudaHostRegister(found.data_ptr(), self._size, 0)) == 0:
                self._bytes = found
                weakref.finalize(self, torch.cuda.cudart().cudaHostUnregister, found.data_ptr())
        except (OSError, ValueError, RuntimeError):  # no memory: whoever wants it gets it piece by piece, or fails there
            return

    def wait(self) -> None:
        """Until all of it is there, or it is known that it will not be."""
        self._thread.join()

    def take(self, like: torch.Tensor) -> torch.Tensor | None:
        """Room for a tensor of this shape and dtype; None where there is none left."""
        end = self._taken + -(-like.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self._bytes is None or end > self._size:
            return None
        found = self._bytes[self._taken : self._taken + like.nbytes].view(like.dtype).view(like.shape)
        self._taken = end
        return found
