"""Routed experts in FP8, which the sampler reads in the place of the policy's own (`--sampling.weights fp8`).

A decoding step takes as long as its weights take to read, and nearly all of them are the routed experts': in FP8 they are
half as many bytes. A kernel multiplies in FP8, with activations in two parts that together have bf16's precision, or in one
(`--sampling.activations fp8`). Where there are many tokens, a layer's weights are widened first, and activations are as they
are. Everything else stays as it is. That includes the shared experts: every token passes them with weight 1, so that their
error counts most, and they are a thirtieth of the bytes.
"""

from __future__ import annotations

import torch

from megatron_ring.model.kernels.fp8 import Fp8Matrix
from megatron_ring.model.moe import RingMoE


class NarrowExperts:
    """Of this process's part of a model, as its weights are now, for forward passes without gradients whose layout carries
    it. `parts`: of an activation, see `Fp8Matrix`."""

    def __init__(self, model: torch.nn.Module, parts: int = 2) -> None:
        self._layers = {module: _room_for(module, parts) for module in model.modules() if isinstance(module, RingMoE)}
        self.refill()

    def refill(self) -> None:
        """Follow the model's weights, in the memory where these are: CUDA graphs name it."""
        for module, matrices in self._layers.items():
            for matrix, weight in zip(matrices, module.experts.matrices(), strict=True):
                matrix.refill(weight)

    def of(self, module: torch.nn.Module) -> tuple[Fp8Matrix, Fp8Matrix]:
        """Of a layer's MoE module: gate_up [E_local, 2f, hidden] and down [E_local, hidden, f]."""
        return self._layers[module]  # type: ignore[index]

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrices in self._layers.values() for matrix in matrices)


def _room_for(module: RingMoE, parts: int) -> tuple[Fp8Matrix, Fp8Matrix]:
    gate_up, down = (Fp8Matrix.empty(*w.shape, device=w.device, parts=parts) for w in module.experts.matrices())
    return gate_up, down
