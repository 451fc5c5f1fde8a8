"""The experts that routers chose for the tokens of a layout: noted while sampling, given to the routers of training.

A layout's `routes` is one of the two. Tensors are [T, L, k] over the MoE layers of this pipeline stage, `route_dtype` each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from megatron_ring.config.declarations import route_itemsize
from megatron_ring.config.model import ModelConfig
from megatron_ring.parallel import collectives


def route_dtype(model: ModelConfig) -> torch.dtype:
    """The smallest integers that name every expert."""
    return {1: torch.uint8, 2: torch.int16}[route_itemsize(model)]


def moe_layers(model: ModelConfig, layers: range) -> range:
    """Those of the 0-based `layers` that have experts."""
    first = max(layers.start, model.first_dense_layers)
    return range(first, max(first, layers.stop))


def new_routes(model: Any, tokens: int) -> torch.Tensor:
    """Room [T, L, k] for the experts of so many tokens, on the device of `model`, a RingModel."""
    shape = (tokens, len(model.route_layers), model.ring_config.experts_per_token)
    return torch.zeros(shape, dtype=route_dtype(model.ring_config), device=next(model.parameters()).device)


def route_bytes(model: Any) -> slice:
    """Which bytes of a token's experts over all MoE layers are those of the pipeline stage of `model`, a RingModel."""
    shape, layers = model.ring_config, model.route_layers
    of_layer = shape.experts_per_token * route_dtype(shape).itemsize
    return slice(*((layer - shape.first_dense_layers) * of_layer for layer in (layers.start, layers.stop)))


def routes_as_bytes(noted: torch.Tensor) -> list[list[bytes]]:
    """From [turns, N, L, k] to the bytes of each of N sequences, turn by turn."""
    rows = noted.transpose(0, 1).cpu().contiguous().numpy()
    return [[turn.tobytes() for turn in turns] for turns in rows]


class Routes(ABC):
    """What MoE layers ask for and tell about the experts of a layout's tokens. Layers are 1-based and global."""

    @abstractmethod
    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Experts [T, k] that another pass chose, and bool [T] for which tokens they are known; for all T tokens."""

    @abstractmethod
    def note(self, layer: int, experts_tk: torch.Tensor) -> None:
        """Experts int64 [T (T/TP under sequence parallelism), k] that this pass chose."""


class NotedRoutes(Routes):
    """Writes into `noted_tlk`, whose first layer is the 0-based `first`."""

    def __init__(self, noted_tlk: torch.Tensor, first: int) -> None:
        self.noted_tlk, self.first = noted_tlk, first

    def given(self, layer: int) -> None:
        return None

    def note(self, layer: int, experts_tk: torch.Tensor) -> None:
        self.noted_tlk[:, layer - 1 - self.first] = collectives.gather_tokens_over_tensor(experts_tk)


class GivenRoutes(Routes):
    """Those of `routes_tlk` where `known_t`."""

    def __init__(self, routes_tlk: torch.Tensor, known_t: torch.Tensor, first: int) -> None:
        self.routes_tlk, self.known_t, self.first = routes_tlk, known_t, first

    def given(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.routes_tlk[:, layer - 1 - self.first], self.known_t

    def note(self, layer: int, experts_tk: torch.Tensor) -> None:
        pass
