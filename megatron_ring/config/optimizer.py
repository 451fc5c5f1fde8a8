"""Optimizer, learning rate and the router's auxiliary losses. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from megatron_ring.config.checks import require
from megatron_ring.config.metadata import MAY_CHANGE, UNLIMITED


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW on megatron-core's distributed optimizer."""

    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of a cosine decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the linear warm-up."""
    warmup_fraction: float = 0.01
    """Linear warm-up, as a fraction of all steps (0..1)."""
    weight_decay: float = 0.1
    """Decoupled weight decay; not applied to norms and other vectors."""
    beta1: float = 0.9
    """Adam's first-moment decay."""
    beta2: float = 0.95
    """Adam's second-moment decay."""
    eps: float = 1e-8
    """Adam's denominator offset."""
    clip_grad: float = field(default=1.0, metadata=UNLIMITED)
    """Global gradient-norm limit (L2; inf: none)."""
    moments: Literal["fp32", "bf16"] = "fp32"
    """Adam's moments; bf16 (CUDA) halves their memory and traffic, at 8 bits of precision. Master weights are fp32."""
    apex: Literal["off", "gradients", "adam", "both"] = field(default="off", metadata=MAY_CHANGE)
    """NVIDIA Apex in place of our kernels (CUDA): linear layers' gradients added straight to fp32 buffers, Adam, or both."""

    def __post_init__(self) -> None:
        require(self.lr > 0 and math.isfinite(self.lr), f"--optimizer.lr is {self.lr}, it must be a positive number")
        require(0 <= self.min_lr <= self.lr, f"--optimizer.min-lr {self.min_lr} is outside 0..lr ({self.lr})")
        require(0 <= self.warmup_fraction <= 1, f"--optimizer.warmup-fraction {self.warmup_fraction} is outside 0..1")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"--optimizer.{name} is {getattr(self, name)}, outside 0..1 (1 excluded)")
        require(0 < self.eps < math.inf, f"--optimizer.eps is {self.eps}, it must be a positive number")
        require(self.clip_grad > 0, f"--optimizer.clip-grad is {self.clip_grad}, it must be positive")
        message = f"--optimizer.apex {self.apex}: its Adam keeps fp32 moments, leave --optimizer.moments at fp32"
        require(self.moments == "fp32" or self.apex in ("off", "gradients"), message)
        require(self.weight_decay >= 0, f"--optimizer.weight-decay is {self.weight_decay}, below 0")

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the 0-based `step` out of `total_steps`."""
        warmup = math.ceil(self.warmup_fraction * total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        progress = (step - warmup) / max(1, total_steps - warmup)
        return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class RouterLossConfig:
    """The MoE router's auxiliary losses (ring-lite report: 1e-5 and 1e-7 in RL)."""

    balance: float = 1e-5
    """Weight of the load-balance loss B = sum_i E * f_i * P_i, summed over layers."""
    z: float = 1e-7
    """Weight of the z-loss, the mean squared logsumexp of the router logits, summed over layers."""

    def __post_init__(self) -> None:
        require(self.balance >= 0 and self.z >= 0, f"--router: weights {self.balance}, {self.z} must not be negative")
