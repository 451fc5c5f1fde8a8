"""Grouped-query causal self-attention over packed tokens, tensor-parallel by KV group."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule

from megatron_ring.config.declarations import attention_weights
from megatron_ring.model.layer_parts import LayerParts
from megatron_ring.model.layout import TokenLayout
from megatron_ring.model.linear import linear


class RingAttention(MegatronModule):
    """Query, key and value in one product (with a bias in some releases), RoPE on the whole head.

    Rows of `linear_qkv` are interleaved per KV group as Megatron has them: the group's queries, its key, its value.
    """

    def __init__(self, config: Any, layer_number: int, pg_collection: Any = None, **_: Any) -> None:
        super().__init__(config)
        parts: LayerParts = config.ring_parts
        self.layer_number = layer_number
        self.head_dim = config.kv_channels
        self.groups = config.num_query_groups // config.tensor_model_parallel_size
        self.queries_per_group = config.num_attention_heads // config.num_query_groups
        declared = attention_weights(config.ring_model)
        qkv_rows, hidden = declared["linear_qkv.weight"].shape
        self.linear_qkv = parts.column_linear(
            hidden,
            qkv_rows,
            config=config,
            init_method=config.init_method,
            bias="linear_qkv.bias" in declared,
            gather_output=False,
            skip_bias_add=False,
            is_expert=False,
        )
        self.linear_proj = parts.row_linear(
            declared["linear_proj.weight"].shape[1],
            hidden,
            config=config,
            init_method=config.output_layer_init_method,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            is_expert=False,
        )
        self.attend = parts.attention(config)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, packed_seq_params: Any = None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        """hidden_states [T (or T/TP under sequence parallelism), 1, hidden] -> the same shape, and no bias."""
        layout: TokenLayout = packed_seq_params
        qkv = linear(self.linear_qkv, hidden_states)
        tokens = qkv.shape[0]
        qkv = qkv.view(tokens, self.groups, self.queries_per_group + 2, self.head_dim)
        out_thd = self.attend(layout, self.layer_number, qkv, layout.rope(self.config.ring_model))
        return linear(self.linear_proj, out_thd.reshape(tokens, 1, -1)), None
