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
    """Learning rate at the end of a decay."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape after the linear warm-up. wsd: the peak is kept, and decays in the last steps."""
    warmup_fraction: float = 0.01
    """Linear warm-up, as a fraction of all steps (0..1)."""
    warmup_steps: int | None = None
    """Linear warm-up in steps, in the place of the fraction."""
    decay_steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Steps of wsd's decay at the end (default: a tenth of all steps; 0: none yet). A continued run may give it together
    with another number of steps: the decay then begins at any checkpoint."""
    decay_shape: Literal["linear", "cosine", "sqrt", "exponential"] = field(default="linear", metadata=MAY_CHANGE)
    """How wsd decays: by 1-r, by a half cosine, by 1-sqrt(r) or by 2^(1-r)-1, r the part of the decay that is done."""
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
        for name, steps in (("warmup", self.warmup_steps), ("decay", self.decay_steps)):
            require(steps is None or steps >= 0, f"--optimizer.{name}-steps is {steps}, below 0")
        require(
            self.decay_steps is None or self.schedule == "wsd",
            f"--optimizer.decay-steps belongs to --optimizer.schedule wsd, which is {self.schedule}",
        )
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"--optimizer.{name} is {getattr(self, name)}, outside 0..1 (1 excluded)")
        require(0 < self.eps < math.inf, f"--optimizer.eps is {self.eps}, it must be a positive number")
        require(self.clip_grad > 0, f"--optimizer.clip-grad is {self.clip_grad}, it must be positive")
        message = f"--optimizer.apex {self.apex}: its Adam keeps fp32 moments, leave --optimizer.moments at fp32"
        require(self.moments == "fp32" or self.apex in ("off", "gradients"), message)
        require(self.weight_decay >= 0, f"--optimizer.weight-decay is {self.weight_decay}, below 0")

    def warmup(self, total_steps: int) -> int:
        """Steps of the warm-up."""
        return math.ceil(self.warmup_fraction * total_steps) if self.warmup_steps is None else self.warmup_steps

    def decay(self, total_steps: int) -> int:
        """Steps of wsd's decay."""
        return math.ceil(total_steps / 10) if self.decay_steps is None else self.decay_steps

    def lr_at(self, step: int, total_steps: int) -> float:
        """Learning rate of the 0-based `step` out of `total_steps`. The shapes are megatron-core's
        (`OptimizerParamScheduler`)."""
        warmup = self.warmup(total_steps)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.schedule == "constant":
            return self.lr
        first = warmup
        shape: str = self.schedule
        if self.schedule == "wsd":
            first, shape = max(warmup, total_steps - self.decay(total_steps)), self.decay_shape
            if step < first:
                return self.lr
        done = min(1.0, (step - first) / max(1, total_steps - first))
        left = {
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "linear": 1 - done,
            "sqrt": 1 - math.sqrt(done),
            "exponential": 2 * 0.5**done - 1,
        }[shape]
        return self.min_lr + (self.lr - self.min_lr) * left


@dataclass(frozen=True)
class RouterLossConfig:
    """The MoE router's auxiliary losses (ring-lite report: 1e-5 and 1e-7 in RL)."""

    balance: float = 1e-5
    """Weight of the load-balance loss B = sum_i E * f_i * P_i, summed over layers."""
    z: float = 1e-7
    """Weight of the z-loss, the mean squared logsumexp of the router logits, summed over layers."""
    bias_rate: float = 0.0
    """Balancing without a loss (arXiv 2408.15664): after each step an expert's bias goes up by this where the expert got
    fewer tokens than the mean of its layer, down where it got more (0: it stays). The bias is added to the router's
    probabilities to choose experts, not to weigh them. Above 0 a model without biases gets them; 1e-3 is usual."""

    def __post_init__(self) -> None:
        require(0 <= self.bias_rate < math.inf, f"--router.bias-rate is {self.bias_rate}, not a number of at least 0")
        require(self.balance >= 0 and self.z >= 0, f"--router: weights {self.balance}, {self.z} must not be negative")
