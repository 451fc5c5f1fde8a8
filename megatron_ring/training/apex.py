"""NVIDIA Apex's kernels in place of this project's, for `--optimizer.apex`: products that add to fp32 gradient buffers, and
Adam over many tensors at once.

Two of Apex's compiled extensions are used, `fused_weight_gradient_mlp_cuda` and `amp_C`; none of its Python. The package
`apex` on PyPI is another project and has neither.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from megatron_ring.errors import UserError
from megatron_ring.model.linear import AddProduct
from megatron_ring.parallel.device import has_cuda
from megatron_ring.training.adamw import FusedAdamW

CHUNK = 2048 * 32  # elements that a block of threads takes, as Apex's own callers have it
MOST_ELEMENTS = 2**31 - 1  # of a tensor: its kernels count in int32
DECOUPLED, CORRECTED = 1, 1  # weight decay as in AdamW; bias correction
BUILD = "git clone https://github.com/NVIDIA/apex && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation ./apex"


def extension(name: str) -> Any:
    """One of Apex's extensions.

    Raises:
        UserError: it is not there, does not fit this torch, or there is no CUDA device.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        lacks = f"NVIDIA Apex is not installed (there is no {name}; PyPI's apex is another project)"
        raise UserError(f"--optimizer.apex: {lacks}: {BUILD}") from None
    except (ImportError, OSError) as error:
        raise UserError(
            f"--optimizer.apex: NVIDIA Apex's {name} cannot be imported, build it for this torch: {error}"
        ) from None
    if not has_cuda():
        raise UserError("--optimizer.apex: NVIDIA Apex's kernels want a CUDA device")
    return module


def gradient_product() -> AddProduct:
    """What adds a weight's gradient to its fp32 buffer in the product's own epilogue. Raises as `extension`."""
    kernel = extension("fused_weight_gradient_mlp_cuda").wgrad_gemm_accum_fp32

    def add(total_ba: torch.Tensor, dy_nb: torch.Tensor, x_na: torch.Tensor) -> None:
        kernel(x_na, dy_nb, total_ba)

    return add


class ApexAdamW(FusedAdamW):
    """The same update by `amp_C`: one pass for gradients, weights and moments, one more for the copies that the model
    computes with. Moments in fp32."""

    def __init__(self, groups: list[dict[str, Any]], moments: torch.dtype) -> None:
        self.kernels = extension("amp_C")
        super().__init__(groups, moments)

    def _on_cuda(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        by_step: dict[int, list[torch.Tensor]] = {}
        for parameter in parameters:
            if parameter.numel() > MOST_ELEMENTS:
                raise UserError(
                    f"--optimizer.apex: a parameter of {parameter.numel():,} elements is too large, leave it off"
                )
            if parameter.numel():  # behind an empty tensor Apex would leave out what comes last
                by_step.setdefault(int(self.state[parameter]["step"]), []).append(parameter)
        for step, alike in by_step.items():
            self._update(group, alike, step)

    def _update(self, group: dict[str, Any], parameters: list[torch.Tensor], step: int) -> None:
        device = parameters[0].device
        skip = torch.zeros(1, dtype=torch.int32, device=device)
        lr, scale = (torch.full((1,), x, dtype=torch.float32, device=device) for x in (group["lr"], self.gradient_scale))
        states = [self.state[parameter] for parameter in parameters]
        gradients = [_contiguous_gradient(parameter) for parameter in parameters]  # scaled gradients are written over them
        tensors = [gradients, parameters, [held["exp_avg"] for held in states], [held["exp_avg_sq"] for held in states]]
        self.kernels.multi_tensor_adam_capturable(
            CHUNK, skip, tensors, lr, *group["betas"], group["eps"], torch.full_like(skip, step), DECOUPLED, CORRECTED,
            group["weight_decay"], scale,
        )  # fmt: skip
        copied = [parameter for parameter in parameters if parameter in self.copies]
        if copied:
            self.kernels.multi_tensor_scale(CHUNK, skip, [copied, [self.copies[parameter] for parameter in copied]], 1.0)


def _contiguous_gradient(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad.contiguous()
