"""What a forward pass must know about its tokens: where each stands in its sequence, and what it may attend to.

Tokens of several sequences lie one after another ("packed", T tokens, no batch dimension). A layout travels through
megatron-core's GPTModel in the place of `packed_seq_params`; attention asks it to attend. Training uses `PackedLayout`;
the sampler brings layouts of its own that read and write a KV cache.

Shape suffixes: t tokens, s sequences, l positions in a sequence, h heads, g KV heads, d head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_ring.config import ModelConfig
from megatron_ring.model.rope import rope_tables


class TokenLayout(PackedSeqParams, ABC):
    """Positions of T packed tokens and the attention over them."""

    def __init__(self, positions: torch.Tensor) -> None:
        super().__init__()
        self.positions = positions
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def rope(self, model: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, 1, head_dim], computed once for all layers of the model that runs on this layout."""
        if self._rope is None:
            self._rope = rope_tables(self.positions, model.head_dim, model.rope_theta, model.rope_scaling)
        return self._rope

    @abstractmethod
    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        """Causal attention of 1-based `layer`: q [T, heads, d], k and v [T, KV heads, d] -> [T, heads, d]."""


class PackedLayout(TokenLayout):
    """Sequences packed one after another, each attending only to itself, causally. Tokens behind the last sequence are
    padding: attention returns zeros for them.

    Args:
        positions: int64 [T] on the device, restarting at 0 in each sequence.
        lengths: tokens of each sequence, at most T together. On the host, so that no layout waits for the device.
    """

    def __init__(self, positions: torch.Tensor, lengths: Sequence[int]) -> None:
        super().__init__(positions)
        self.num_sequences = len(lengths)
        self.max_seqlen = max(lengths, default=0)
        cells = [s * self.max_seqlen + p for s, length in enumerate(lengths) for p in range(length)]
        self._cell_n = torch.tensor(cells, dtype=torch.int64).to(positions.device, non_blocking=True)

    def _to_padded(self, x_thd: torch.Tensor) -> torch.Tensor:
        """[T, heads, d] -> [S, heads, L, d] with zeros behind the end of each sequence."""
        padded = x_thd.new_zeros(self.num_sequences * self.max_seqlen, *x_thd.shape[1:])
        padded = padded.index_copy(0, self._cell_n, x_thd[: self._cell_n.numel()])
        return padded.view(self.num_sequences, self.max_seqlen, *x_thd.shape[1:]).transpose(1, 2)

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        real = self._cell_n.numel()
        if real == 0:
            return q_thd * 0.0
        q, k, v = self._to_padded(q_thd), self._to_padded(k_tgd), self._to_padded(v_tgd)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        out = out.transpose(1, 2).reshape(self.num_sequences * self.max_seqlen, *q_thd.shape[1:])
        out = out.index_select(0, self._cell_n)
        return F.pad(out, (0, 0, 0, 0, 0, q_thd.shape[0] - real)) if real < q_thd.shape[0] else out
