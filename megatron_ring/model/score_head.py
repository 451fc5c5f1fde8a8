"""The head of a reward model: one linear map from a conversation's last hidden state to a number.

Suffixes: t tokens of this tensor-parallel rank, n conversations, h hidden.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ring.config.declarations import SCORE, declared_weights
from megatron_ring.parallel import collectives
from megatron_ring.parallel.context import ParallelContext


class ScoreHead(torch.nn.Module):
    """Linear(hidden, 1) without bias, fp32 whatever the model's dtype, the same on every process of the last stage.

    Under sequence parallelism each tensor-parallel rank scores the conversations that end among its tokens. No hidden state
    travels; megatron-core adds up the weight's gradients, as it does those of norms (`sequence_parallel`).
    """

    def __init__(self, config: Any, context: ParallelContext) -> None:
        super().__init__()
        declared = next(weight for weight in declared_weights(config.ring_model) if weight.name == SCORE)
        self.weight = torch.nn.Parameter(torch.empty(declared.shape, dtype=torch.float32, device=context.device))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        self.tensor_rank = context.tensor_rank

    def rewards(self, hidden: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Scores of the hidden states at `rows`.

        Args:
            hidden: [T or T/TP, 1, hidden], the last layer's output.
            rows: int64 [n], places among all T tokens, the same on every tensor-parallel rank; may be empty.

        Returns:
            fp32 [n], equal on every tensor-parallel rank, differentiable in `hidden` and the weight.
        """
        hidden_th = hidden.flatten(0, 1)
        local = rows - self.tensor_rank * hidden_th.shape[0]
        mine = (local >= 0) & (local < hidden_th.shape[0])
        hidden_nh = hidden_th.index_select(0, local.clamp(0, hidden_th.shape[0] - 1)).float()
        scores = (hidden_nh * self.weight).sum(dim=1)
        return _SumOverTensor.apply(torch.where(mine, scores, 0.0)) if collectives.splits_tensors() else scores


class _SumOverTensor(torch.autograd.Function):
    """Each number comes from one rank; every rank then makes the same loss of it, so gradients go back as they are."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return collectives.sum_over_tensor(values.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient
