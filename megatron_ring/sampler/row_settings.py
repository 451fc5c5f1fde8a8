"""The sampling settings of the rows of a batch, as tensors: a row's own, so that rows may differ, and so that a CUDA graph
reads them where they are instead of holding their values.

Suffixes: n sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megatron_ring.config.sampling import RequestSampling
from megatron_ring.parallel.device import moved_to

# Numbers of a row, in the order of `RowSettings`. float64, as Python has them: kernels round to fp32 what they take.
NUMBERS = 7


def numbers_of(sampling: RequestSampling) -> tuple[float, ...]:
    """What a row of `RowSettings.numbers` says of `sampling`."""
    if sampling.greedy:  # log-probabilities are those of temperature 1; what kernels keep is the highest logit alone
        return (1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    temperature, min_p = sampling.temperature, sampling.min_p
    below_highest = -temperature * math.log(min_p) if min_p else math.inf
    return (temperature, 1.0 / temperature, float(sampling.top_k), sampling.top_p, min_p, below_highest, 0.0)


UNCUT = numbers_of(RequestSampling())


def cuts(sampling: RequestSampling) -> bool:
    """Whether a token is not drawn from the whole distribution: it is cut, or its most likely token is taken."""
    return sampling.greedy or not sampling.whole_distribution


@dataclass(frozen=True)
class RowSettings:
    """Settings of N rows.

    Attributes:
        numbers: float64 [NUMBERS, N].
        cuts: whether `cuts` holds for any row. On the host: where it is False no kernel looks for what is kept. Where it is
            True a row without cuts is drawn as if it were False.
    """

    numbers: torch.Tensor
    cuts: bool

    @classmethod
    def of(cls, rows: Sequence[tuple[float, ...]], cuts: bool, device: torch.device | None = None) -> RowSettings:
        """From `numbers_of` each row."""
        # An even number of columns aligns every row alike: Triton compiles anew for other alignments.
        even = [*rows, *[UNCUT] * (len(rows) % 2)]
        numbers = torch.tensor(even, dtype=torch.float64).view(-1, NUMBERS).t().contiguous()
        numbers = numbers if device is None else moved_to(numbers, device)
        return cls(numbers[:, : len(rows)], cuts)

    @property
    def temperature(self) -> torch.Tensor:
        """[N], above 0; 1 for greedy rows."""
        return self.numbers[0]

    @property
    def inverse_temperature(self) -> torch.Tensor:
        return self.numbers[1]

    @property
    def top_k(self) -> torch.Tensor:
        """[N], 0: all."""
        return self.numbers[2]

    @property
    def top_p(self) -> torch.Tensor:
        return self.numbers[3]

    @property
    def min_p(self) -> torch.Tensor:
        return self.numbers[4]

    @property
    def below_highest(self) -> torch.Tensor:
        """[N]: how far below the highest logit of its row a logit is kept, by min-p; inf: however far."""
        return self.numbers[5]

    @property
    def greedy(self) -> torch.Tensor:
        """[N], 1 where the most likely token is taken, otherwise 0."""
        return self.numbers[6]
