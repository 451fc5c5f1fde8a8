"""Experts in FP8, which the sampler reads in the place of the policy's own (`--sampling.weights fp8` and `fp8-routed`).

A decoding step takes as long as its weights take to read, and nearly all of them are the experts': in FP8 they are half as
many bytes. Products are of bf16 as ever: a kernel widens what it has read. Attention, router, dense layers and head stay as
they are.

Where all experts are in one process, shared ones lie before the routed ones, cut into experts of their width: they are
experts that every token chooses, computed by the same kernels at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from megatron_ring.model.kernels.fp8 import Fp8Matrix
from megatron_ring.model.moe import RingMoE


@dataclass(frozen=True)
class NarrowLayer:
    """A layer's experts in FP8.

    Attributes:
        routed: gate_up [always + E_local, 2f, hidden] and down [always + E_local, hidden, f].
        always: shared experts among them, the first.
        shared: the shared experts' two matrices, where they are in FP8 and by themselves.
    """

    routed: tuple[Fp8Matrix, Fp8Matrix]
    always: int = 0
    shared: tuple[Fp8Matrix, Fp8Matrix] | None = None


class NarrowExperts:
    """Of this process's part of a model, as its weights are now, for forward passes without gradients whose layout carries
    it. `shared`: of the shared experts, too."""

    def __init__(self, model: torch.nn.Module, shared: bool) -> None:
        self._layers = {module: _room_for(module, shared) for module in model.modules() if isinstance(module, RingMoE)}
        self.refill()

    def refill(self) -> None:
        """Follow the model's weights, in the memory where these are: CUDA graphs name it."""
        for module, layer in self._layers.items():
            for matrix, weight in _pairs(module, layer):
                matrix.refill(weight)

    def of(self, module: torch.nn.Module) -> NarrowLayer:
        """Of a layer's MoE module."""
        return self._layers[module]  # type: ignore[index]

    @property
    def nbytes(self) -> int:
        matrices = [m for layer in self._layers.values() for m in (*layer.routed, *(layer.shared or ()))]
        return sum(matrix.nbytes for matrix in matrices)


def _room_for(module: RingMoE, with_shared: bool) -> NarrowLayer:
    always, shared = module.shared_beside_routed if with_shared else 0, None
    gate_up, down = (
        Fp8Matrix.empty(always + weight.shape[0], *weight.shape[1:], device=weight.device)
        for weight in module.experts.matrices()
    )
    if with_shared and module.shared_experts is not None and not always:
        first, second = (Fp8Matrix.empty(*w.shape, device=w.device) for w in module.shared_experts.matrices())
        shared = first, second
    return NarrowLayer((gate_up, down), always, shared)


def _pairs(module: RingMoE, layer: NarrowLayer) -> Iterator[tuple[Fp8Matrix, torch.Tensor]]:
    """Each matrix with the weight that it follows."""
    always = layer.always
    for matrix, weight in zip(layer.routed, module.experts.matrices(), strict=True):
        yield matrix.part(always, always + weight.shape[0]), weight
    if module.shared_experts is None:
        return
    first, second = module.shared_experts.matrices()
    if layer.shared is not None:
        yield from zip(layer.shared, (first, second), strict=True)
    if not always:
        return
    # Gates lie above ups: of each expert's width of both.
    yield layer.routed[0].part(0, always), first.unflatten(0, (2, always, -1)).transpose(0, 1).flatten(1, 2)
    yield layer.routed[1].part(0, always), second.unflatten(1, (always, -1)).transpose(0, 1)
