"""Filling megatron-core's fp32 gradient buffers at memory speed: the first gradient of a step is written, later ones are
added, nothing is cleared before."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from megatron_ring.model.linear import AddProduct, add_products


class GradientBuffers:
    """The buffers of a megatron-core DistributedDataParallel `ddp`. On the CPU they are cleared and filled by its own hooks.

    `add` takes the products that make the gradients of linear layers' weights and adds them to the buffers; see
    `linear.add_products`. These buffers are cleared.

    Between `start_step` and `end_backward` run the forward and backward passes of all micro-batches. From one step to the
    next the buffers can give their memory away.

    Attributes:
        away: whether they have.
    """

    def __init__(self, ddp: Any, add: AddProduct | None = None) -> None:
        self.ddp = ddp
        self.parameters = [parameter for parameter in ddp.parameters() if parameter.requires_grad]
        self.ours = all(p.is_cuda and p.main_grad.dtype is torch.float32 for p in self.parameters)
        self.by_product: list[Any] = [] if add is None else add_products(ddp.module, add)
        added = set(self.by_product)
        self.by_hook = [parameter for parameter in self.parameters if parameter not in added]
        self._untouched: set[torch.Tensor] = set()
        self.away = False
        if self.ours:
            for parameter in self.by_hook:
                parameter.register_hook(partial(self._take, parameter))
        else:
            _skip_exchanges_with_oneself(ddp)

    @property
    def bytes(self) -> int:
        """Of the buffers when they have their memory."""
        return sum(int(buffer.grad_data.nbytes) for buffer in self.ddp.buffers + self.ddp.expert_parallel_buffers)

    def release(self) -> None:
        """Give the memory away until `take_back`, or `start_step`. The device is not waited for: its stream reuses the
        memory behind what it still does with it."""
        self.ddp.offload_grad_buffers(synchronize=False, empty_cache=False)  # does nothing a second time
        self.away = True

    def take_back(self) -> None:
        """Take memory again if it was given away; it holds zeros."""
        if self.away:
            self.ddp.restore_grad_buffers(synchronize=False)
            self.away = False

    def start_step(self) -> None:
        """What the buffers hold is of no use any more."""
        self.take_back()
        if not self.ours:
            self.ddp.zero_grad_buffer()
            return
        self._untouched = set(self.by_hook)
        if self.by_product:
            torch._foreach_zero_([weight.main_grad for weight in self.by_product])
        for parameter in self.parameters:
            parameter.grad_added_to_main_grad = False
        for group in self.ddp.bucket_groups + self.ddp.expert_parallel_bucket_groups:
            group.reset()

    def end_backward(self) -> None:
        """Weights that no micro-batch used have a gradient of zero."""
        for parameter in self._untouched:
            parameter.main_grad.zero_()  # type: ignore[attr-defined]
        self._untouched = set()

    def _take(self, parameter: Any, gradient: torch.Tensor) -> torch.Tensor:
        """megatron-core's hook, which comes next, sees that the gradient is in its buffer."""
        from megatron_ring.training import adamw_triton

        adamw_triton.accumulate(parameter.main_grad, gradient.contiguous(), parameter in self._untouched)
        self._untouched.discard(parameter)
        parameter.grad_added_to_main_grad = True
        return gradient


def _skip_exchanges_with_oneself(ddp: Any) -> None:
    """Without data parallelism each buffer is its own shard; gloo would copy both onto themselves at every step."""
    for group in ddp.bucket_groups + ddp.expert_parallel_bucket_groups:
        if group.intra_distributed_optimizer_instance_size == 1:
            group.start_grad_sync = group.start_param_sync = lambda *_, **__: None
