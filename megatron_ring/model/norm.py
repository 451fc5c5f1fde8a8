"""RMSNorm that works under sequence parallelism (megatron-core's torch-native wrapper refuses it)."""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.model.kernels.norm import add_and_norm, norm_and_pass, rms_norm


class RMSNorm(torch.nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; any leading shape; computed in fp32 inside."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=torch.get_default_device())
        )
        # Each TP rank sees its slice of the sequence: megatron-core sums gradients marked this way over TP.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.weight, self.eps)

    def and_pass(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x, x for the residual path)."""
        return norm_and_pass(x, self.weight, self.eps)

    def of_sum(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual)."""
        return add_and_norm(x, residual, self.weight, self.eps)
