"""The routed experts in FP8, which the sampler reads in the place of the policy's own (`--sampling.weights fp8`).

A decoding step takes as long as its weights take to read, and nine tenths of them are the routed experts': in FP8 they are
half as many bytes. Products are of bf16 as ever: a kernel widens what it has read. Attention, router, shared experts, dense
layers and head stay as they are.
"""

from __future__ import annotations

import torch

from megatron_ring.model.experts import GroupedExperts
from megatron_ring.model.kernels.fp8 import Fp8Matrix


class NarrowExperts:
    """Of this process's part of a model, as its weights are now, for forward passes without gradients whose layout carries
    it."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._matrices = {
            module: tuple(Fp8Matrix.of(weight) for weight in module.matrices())
            for module in model.modules()
            if isinstance(module, GroupedExperts)
        }

    def refill(self) -> None:
        """Follow the model's weights, in the memory where these are: CUDA graphs name it."""
        for module, matrices in self._matrices.items():
            for matrix, weight in zip(matrices, module.matrices(), strict=True):
                matrix.refill(weight)

    def of(self, module: torch.nn.Module) -> tuple[Fp8Matrix, Fp8Matrix]:
        """gate_up [E_local, 2f, hidden] and down [E_local, hidden, f] of a layer's experts."""
        gate_up, down = self._matrices[module]  # type: ignore[index]
        return gate_up, down

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrices in self._matrices.values() for matrix in matrices)
