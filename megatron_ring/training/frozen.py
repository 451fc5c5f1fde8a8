"""A model that is never trained, beside one that is: its weights can leave the device while nobody needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megatron_ring.parallel.device import has_cuda, return_unused_memory


class FrozenWeights:
    """The weights of one model, on the device all the time or only within `present`.

    The copy in host memory (pinned where there is CUDA) is made once: what is frozen is never copied back. Buffers, some of
    which all layers share, stay on the device.
    """

    def __init__(self, model: torch.nn.Module, offload: bool) -> None:
        """`offload`: they are away from here on, but within `present`."""
        self._parameters = list(model.parameters())
        self._host: list[torch.Tensor] = []
        if offload:
            self._host = [
                torch.empty_like(weight, device="cpu", pin_memory=has_cuda()).copy_(weight.data)
                for weight in self._parameters
            ]
            self._send_away()

    @property
    def host_bytes(self) -> int:
        """Held in host memory."""
        return sum(tensor.nbytes for tensor in self._host)

    @contextmanager
    def present(self, make_room: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Within it the model can be used. `make_room`: called first where the weights have to come back."""
        if not self._host:
            yield
            return
        make_room()
        return_unused_memory()
        for weight, host in zip(self._parameters, self._host, strict=True):
            weight.data = host.to(weight.device, non_blocking=True) if has_cuda() else host
        try:
            yield
        finally:
            self._send_away()

    def _send_away(self) -> None:
        for weight in self._parameters:
            weight.data = weight.data.new_empty(0)
        return_unused_memory()
