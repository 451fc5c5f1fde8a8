"""Which experts the routers choose for tokens that are decoded, also where CUDA graphs run the routers."""

from __future__ import annotations

from functools import partial

import torch

from megatron_ring.model.ring_model import RingModel
from megatron_ring.model.router import RingRouter
from megatron_ring.sampler.scheduler import Step


class RecordedChoices:
    """Listens to the routers of `model` until `stop`.

    Args:
        rows, turns: at most so many sequences decode together, and so many tokens in a row.

    Attributes:
        size: the first so many rows of a forward pass decode; the others are of no interest.
        turn: int64 [1] on the device, which of the tokens in a row is being decoded.
        layers: 1-based numbers of this process's layers with routers.
    """

    def __init__(self, model: RingModel, rows: int, turns: int) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, RingRouter)]
        self.layers = [router.layer_number for router in self._routers]
        device, self.size = next(model.parameters()).device, rows
        k = model.ring_config.experts_per_token
        self.turn = torch.zeros(1, dtype=torch.int64, device=device)
        self._kept = torch.zeros(turns, len(self._routers), rows, k, dtype=torch.int16, device=device)
        self._noted: list[tuple[list[tuple[int, int]], torch.Tensor]] = []
        for place, router in enumerate(self._routers):
            router.on_choice = partial(self._take, place)

    def _take(self, place: int, _layer: int, experts_tk: torch.Tensor) -> None:
        count = min(self.size, experts_tk.shape[0])
        if count:
            self._kept[:, place, :count].index_copy_(0, self.turn, experts_tk[None, :count].to(torch.int16))

    def note(self, step: Step, turns: int) -> None:
        """Keep what was chosen in this step, which has run: so many tokens in a row."""
        count = len(step.decoding)
        if count:
            fed = [(sequence.index, sequence.cached) for sequence in step.decoding]
            self._noted.append((fed, self._kept[:turns, :, :count].to("cpu", copy=True)))

    def of_tokens(self) -> dict[tuple[int, int], torch.Tensor]:
        """int16 [layers, k] for each token that was decoded, by (place of its request, position)."""
        return {
            (index, position + turn): kept[turn, :, row]
            for fed, kept in self._noted
            for row, (index, position) in enumerate(fed)
            for turn in range(len(kept))
        }

    def stop(self) -> None:
        for router in self._routers:
            router.on_choice = None
