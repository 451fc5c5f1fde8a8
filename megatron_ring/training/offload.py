"""Room for the KV cache: while responses are sampled, what only updates use leaves the device.

Gradient buffers are given up, as their contents are of no use from one update to the next. fp32 weights that stand behind a
model in bf16, and Adam's moments, go to host memory. megatron-core's own `offload_to_cpu` gives the optimizer other tensors
instead: in pageable memory taken anew each time, on CUDA alone, and the weights of an fp32 model, which are views of the
model's, would come back as others that the model does not see. Its release of gradient buffers is used.
"""

from __future__ import annotations

from typing import Any

from megatron_ring.checkpoint.pieces import optimizer_parts
from megatron_ring.errors import UserError
from megatron_ring.parallel.device import return_unused_memory
from megatron_ring.training.gradient_buffers import GradientBuffers


class StateOffload:
    """The state of one trainer. Forward passes work while it is away.

    Nobody can find it missing: an update and both saving and loading a checkpoint bring back what they need, on their own.
    `bring_back` does it at a time of one's choice, and all of it.
    """

    def __init__(self, optimizer: Any, buffers: GradientBuffers) -> None:
        """`optimizer`: megatron-core's, with `FusedAdamW` in it."""
        self._updates = [part.optimizer for part in optimizer_parts(optimizer)]
        self._buffers = buffers

    @property
    def host_bytes(self) -> int:
        """Of optimizer state that is in host memory now."""
        return sum(update.store.bytes for update in self._updates)

    @property
    def freed_bytes(self) -> int:
        """Of the device that are free for it now."""
        return self.host_bytes + (self._buffers.bytes if self._buffers.away else 0)

    def send_away(self) -> None:
        """Free the device of what is on it of the state. Queues on the current stream, as `bring_back`.

        Raises:
            UserError: there is no host memory for it.
        """
        try:
            for update in self._updates:
                update.send_away()
        except MemoryError as error:
            raise UserError(
                f"--offload-optimizer: no host memory for the optimizer's state ({error}): leave it out"
            ) from error
        self._buffers.release()
        return_unused_memory()

    def bring_back(self) -> None:
        """Undo `send_away`, if it was. The KV cache must have made way."""
        if not self.freed_bytes:
            return
        return_unused_memory()  # of the cache: what stays for long should not split its one piece
        for update in self._updates:
            update.bring_back()
        self._buffers.take_back()
