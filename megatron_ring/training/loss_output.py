"""What losses report of a step, added up on the device and read by the host once, at the step's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from megatron_ring.parallel import collectives
from megatron_ring.parallel.device import HostCopy


@dataclass(frozen=True)
class LossOutput:
    """What a loss makes of some tokens, all scalars.

    loss: a sum over the tokens, differentiable in their log-probabilities and entropies. sums, maxima: metrics to be added
    up or maximised over calls, micro-batches and ranks.
    """

    loss: torch.Tensor
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    maxima: dict[str, torch.Tensor] = field(default_factory=dict)


class PendingFigures:
    """Metrics over micro-batches and data-parallel ranks, on their way to the host.

    Args:
        outputs: what the loss gave; on the last pipeline stage, none on others.
        router: fp64 [5] on the device, `RouterLosses.local_sums` over all ranks and stages.
    """

    def __init__(self, outputs: Sequence[LossOutput], router: torch.Tensor) -> None:
        self.sums = list(outputs[0].sums) if outputs else []
        self.maxima = list(outputs[0].maxima) if outputs else []
        parts = [router]
        if self.sums:
            scalars = [output.sums[name] for output in outputs for name in self.sums]
            summed = torch.stack(scalars).view(len(outputs), -1).sum(0, dtype=torch.float64)
            parts.append(collectives.sum_over_data(summed))
        if self.maxima:
            scalars = [output.maxima[name] for output in outputs for name in self.maxima]
            largest = torch.stack(scalars).view(len(outputs), -1).amax(0).double()
            parts.append(collectives.max_over_data(largest))
        self._copy = HostCopy(torch.cat(parts))

    def read(self) -> tuple[dict[str, float], dict[str, float], float, float, float | None]:
        """Sums and maxima by name, equal on every pipeline stage; means over tokens and MoE layers of the router's balance
        and z-losses; the share of given experts that the routers would not have chosen, None where none were given. Waits
        for what the device did up to these figures."""
        balance, z, tokens, others, given, *values = self._copy.read()
        sums = dict(zip(self.sums, values, strict=False))
        maxima = dict(zip(self.maxima, values[len(sums) :], strict=True))
        sums, maxima = collectives.broadcast_object_from_last_stage((sums, maxima))
        disagreement = others / given if given else None
        return sums, maxima, balance / tokens if tokens else 0.0, z / tokens if tokens else 0.0, disagreement
