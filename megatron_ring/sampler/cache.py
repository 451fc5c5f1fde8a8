"""The KV cache of one pipeline stage, and the layouts through which the model's attention uses it.

Suffixes: n sequences, g KV heads, h query heads, l positions, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from megatron_ring.model.layout import PackedLayout, TokenLayout


class KVCache:
    """Keys and values [layers, slots, KV heads, positions, d] of this rank's layers and KV heads."""

    def __init__(
        self, first_layer: int, layers: int, slots: int, kv_heads: int, positions: int, head_dim: int,
        dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        self.first_layer = first_layer
        shape = (layers, slots, kv_heads, positions, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def positions(self) -> int:
        """Longest sequence that fits (tokens)."""
        return self.keys.shape[3]

    def move(self, moves: list[tuple[int, int]]) -> None:
        """Copy slots (from, to), one after another."""
        for source, target in moves:
            self.keys[:, target] = self.keys[:, source]
            self.values[:, target] = self.values[:, source]

    def write(
        self, layer: int, slots: torch.Tensor, positions: torch.Tensor, k_ngd: torch.Tensor, v_ngd: torch.Tensor
    ) -> None:
        """Store one key and value per row at (slots[n], positions[n]) of the 1-based global `layer`."""
        self.keys[layer - 1 - self.first_layer][slots, :, positions] = k_ngd
        self.values[layer - 1 - self.first_layer][slots, :, positions] = v_ngd


class PrefillLayout(PackedLayout):
    """Whole prompts, packed; their keys and values go to the cache.

    Args:
        lengths: tokens of each prompt.
        slots: int64 [N], the cache slot of each of the N prompt tokens; tokens behind them are padding.
    """

    def __init__(self, positions: torch.Tensor, lengths: Sequence[int], slots: torch.Tensor, cache: KVCache) -> None:
        super().__init__(positions, lengths)
        self.slots, self.cache = slots, cache

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        real = self.slots.numel()
        self.cache.write(layer, self.slots, self.positions[:real], k_tgd[:real], v_tgd[:real])
        return super().attend(layer, q_thd, k_tgd, v_tgd)


class DecodeLayout(TokenLayout):
    """One new token for each of the sequences in slots 0..N-1; tokens behind them are padding.

    Args:
        positions: int64 [T], position of each new token.
        sequences: N.
        longest: length of the longest sequence, its new token included.
    """

    def __init__(self, positions: torch.Tensor, sequences: int, longest: int, cache: KVCache) -> None:
        super().__init__(positions)
        self.sequences, self.longest, self.cache = sequences, longest, cache
        self.slots = torch.arange(sequences, device=positions.device)
        seen = torch.arange(longest, device=positions.device)[None, :] <= positions[:sequences, None]
        self.mask = seen[:, None, None, :]

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        n = self.sequences
        out = torch.zeros_like(q_thd)
        if n == 0:
            return out
        self.cache.write(layer, self.slots, self.positions[:n], k_tgd[:n], v_tgd[:n])
        local = layer - 1 - self.cache.first_layer
        keys, values = self.cache.keys[local, :n, :, : self.longest], self.cache.values[local, :n, :, : self.longest]
        # The queries of one KV group stand where a sequence's queries would: no key or value is repeated.
        q_ngqd = q_thd[:n].unflatten(1, (k_tgd.shape[1], -1))
        attended = F.scaled_dot_product_attention(q_ngqd, keys, values, attn_mask=self.mask)
        out[:n] = attended.flatten(1, 2)
        return out
