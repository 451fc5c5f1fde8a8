"""One transformer layer: norm, attention, norm of the sum, experts, in fused passes; and what of it is computed again in the
backward pass instead of being kept."""

from __future__ import annotations

from typing import Any, Literal

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_ring.model.norm import RMSNorm

Recompute = Literal["none", "experts", "full"]


class RingLayer(TransformerLayer):
    """x + attention(norm(x)), then y + moe(norm(y)).

    `config.ring_recompute`: "none"; "experts", whose first product [token-slots, 2 * expert width] is made again; "full",
    where only the layer's input is kept.

    `following`: the next layer's first norm, where this process has it, in a tuple: it is that layer's.
    """

    following: tuple[RMSNorm, ...] = ()

    def forward(
        self, hidden_states: torch.Tensor, packed_seq_params: Any = None, padding_mask: torch.Tensor | None = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [T (or T/TP under sequence parallelism), 1, hidden] -> the same shape, and no context."""

        def run(hidden: torch.Tensor) -> torch.Tensor:
            normed, residual = self._normed(hidden, packed_seq_params)
            attended, _ = self.self_attention(normed, packed_seq_params=packed_seq_params)
            normed, residual = self.pre_mlp_layernorm.of_sum(attended, residual)
            return self.mlp.with_residual(normed, residual, padding_mask, packed_seq_params, self.following)

        if self.config.ring_recompute == "full" and self.training and torch.is_grad_enabled():
            # megatron-core's runs the first time without gradients: routers count their losses once, in the second.
            return tensor_parallel.checkpoint(run, False, hidden_states), None
        return run(hidden_states), None

    def _normed(self, hidden: torch.Tensor, layout: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of hidden, hidden for the residual path)."""
        ahead = None if layout is None else layout.ahead
        if ahead is not None and ahead[0].data_ptr() == hidden.data_ptr():
            layout.ahead = None
            return ahead[1].view_as(hidden), hidden
        return self.input_layernorm.and_pass(hidden)
