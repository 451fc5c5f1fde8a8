"""The reward model's loss: Bradley-Terry on pairs, with a margin and a term that centres the rewards.

    L = mean over pairs of  -log sigmoid(r_c - r_r - m)  +  lambda (r_c + r_r)^2

A Bradley-Terry model knows rewards up to a constant for each prompt. The second term, small, chooses the constant: rewards
of a pair around zero. The margin m asks for more distance where a preference is said to be strong (Llama 2,
arXiv 2307.09288).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from megatron_ring.data.preference_data import PreferenceBatch
from megatron_ring.training.loss_output import LossOutput


@dataclass(frozen=True)
class PairLoss:
    """`centring`: lambda. Figures are sums over pairs; `loss` among them is what is trained."""

    centring: float = 0.0

    def __call__(self, rewards: torch.Tensor, batch: PreferenceBatch) -> LossOutput:
        """Rewards fp32 [2 P]: of each pair the chosen one's, then the rejected one's."""
        chosen, rejected = rewards[0::2], rewards[1::2]
        gaps = chosen - rejected
        preference = F.softplus(batch.margins[0::2] - gaps).sum()
        centre = (chosen + rejected).square().sum()
        loss = preference + self.centring * centre
        sums = {
            "loss": loss,
            "loss/preference": preference,
            "loss/centre": centre,
            "accuracy": (gaps > 0).sum(),
            "reward/chosen": chosen.sum(),
            "reward/rejected": rejected.sum(),
            "reward/gap": gaps.sum(),
        }
        return LossOutput(loss, sums={name: value.detach().float() for name, value in sums.items()})
