"""AdamW in one pass over memory: gradients are scaled (clipped), moments and weights updated, and the weights that the model
computes with written, together. megatron-core's distributed optimizer keeps its part: who updates what, and gathering."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from megatron_ring.checkpoint.pieces import MOMENTS, optimizer_parts
from megatron_ring.errors import UserError
from megatron_ring.parallel.device import has_cuda
from megatron_ring.parallel.host_store import HostStore

MOMENT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class FusedAdamW(torch.optim.Optimizer):
    """AdamW over existing parameter groups (with `lr`, `betas`, `eps`, `weight_decay`), fp32 parameters.

    Attributes:
        gradient_scale: what gradients are multiplied with in the next step.
        copies: by parameter, a tensor of its shape that gets the updated value in its own dtype.
        store: where parameters that have a copy, and all moments, are between `send_away` and `bring_back`. `step` and
            `state_of` bring them back.
    """

    def __init__(self, groups: list[dict[str, Any]], moments: torch.dtype) -> None:
        super().__init__([torch.empty(0)], {})
        self.param_groups = groups  # torch takes no views as parameters; megatron-core's fp32 shards are
        self.moments = moments
        self.gradient_scale = 1.0
        self.copies: dict[torch.Tensor, torch.Tensor] = {}
        self.store = HostStore()

    def send_away(self) -> None:
        """Free the device of everything that only updates use: of parameters without a copy the model computes with them."""
        if not self.store.away:
            moments = (held[name] for held in self.state.values() for name in MOMENTS)
            self.store.send([*self.copies, *moments])

    def bring_back(self) -> None:
        """Undo `send_away`, if it was."""
        self.store.bring_back()

    def state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """`step` (fp32 scalar on the host), `exp_avg`, `exp_avg_sq`; zeros before the first update."""
        self.bring_back()
        held = self.state[parameter]
        if not held:
            held["step"] = torch.zeros((), dtype=torch.float32)
            held["exp_avg"] = torch.zeros_like(parameter, dtype=self.moments)
            held["exp_avg_sq"] = torch.zeros_like(parameter, dtype=self.moments)
        return held

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        self.bring_back()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self.state_of(parameter)["step"] += 1
            if parameters and parameters[0].is_cuda:
                self._on_cuda(group, parameters)
            elif parameters:
                self._on_host(group, parameters)

    def _on_cuda(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        from megatron_ring.training import adamw_triton

        scale = torch.full((), self.gradient_scale, dtype=torch.float32, device=parameters[0].device)
        for parameter in parameters:
            held = self.state[parameter]
            adamw_triton.adamw(
                parameter, _gradient(parameter).contiguous(), held["exp_avg"], held["exp_avg_sq"], scale,
                self.copies.get(parameter), group["lr"], group["betas"], group["eps"], group["weight_decay"],
                int(held["step"]),
            )  # fmt: skip

    def _on_host(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        torch._fused_adamw_(
            parameters, [_gradient(parameter) for parameter in parameters], [held["exp_avg"] for held in states],
            [held["exp_avg_sq"] for held in states], [], [held["step"] for held in states], lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False, grad_scale=torch.full((), 1.0 / self.gradient_scale), found_inf=None,
        )  # fmt: skip
        for parameter in parameters:
            if parameter in self.copies:
                self.copies[parameter].copy_(parameter)


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def install(optimizer: Any, moments: str, make: type[FusedAdamW] = FusedAdamW) -> None:
    """Put a `make` into each distributed optimizer that megatron-core chains, and let it write the model's weights.

    Raises:
        UserError: moments in bf16 without CUDA.
    """
    if moments != "fp32" and not has_cuda():
        raise UserError(f"--optimizer.moments {moments}: for CUDA devices only, leave it at fp32 here")
    for part in optimizer_parts(optimizer):
        fused = make(part.optimizer.param_groups, MOMENT_DTYPES[moments])
        for mains, models in (
            (part.shard_fp32_from_float16_groups, part.model_float16_groups),
            (part.shard_fp32_groups, part.model_fp32_groups),
        ):
            for main_group, model_group in zip(mains, models, strict=True):
                for main, model in zip(main_group, model_group, strict=True):
                    target = _shard_in_buffer(part, model)
                    if target.data_ptr() != main.data_ptr():
                        fused.copies[main] = target.view(main.shape)
        part.optimizer = fused
        part._copy_main_params_to_model_params = lambda: None  # done in the same pass


def _shard_in_buffer(part: Any, model_parameter: torch.Tensor) -> torch.Tensor:
    """The part of a model weight that this rank updates, in the buffer from which the others gather it."""
    place = part._get_model_param_range_map(model_parameter)["gbuf_world_in_bucket"]
    buffer, _, bucket = part.model_param_gbuf_map[model_parameter]
    data: torch.Tensor = part.buffers[buffer].buckets[bucket].param_data
    return data.view(-1)[place.start : place.end]


def update(
    optimizer: Any, max_norm: float, divisor: float = 1.0, accepts: Callable[[float], bool] = lambda norm: True
) -> tuple[bool, float]:
    """Divide the gradients by `divisor`, clip to `max_norm` (L2, over all ranks) and update, in one pass after the norm's.

    Args:
        accepts: told the norm before clipping, where it is finite; false leaves the update out. The same on all ranks.

    Returns:
        whether the weights were updated (not where the norm is not finite), and the norm before clipping.
    """
    if optimizer.prepare_grads():
        return False, float("nan")
    norm = float(optimizer.get_grad_norm()) / divisor
    if not math.isfinite(norm) or not accepts(norm):
        return False, norm
    for part in optimizer_parts(optimizer):
        part.optimizer.gradient_scale = min(1.0, max_norm / (norm + 1e-6)) / divisor
    return bool(optimizer.step_with_ready_grads()), norm
