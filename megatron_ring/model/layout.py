"""What a forward pass must know about its tokens: where each stands in its sequence, and what it may attend to.

Tokens of several sequences lie one after another ("packed", T tokens, no batch dimension). A layout travels through
megatron-core's GPTModel in the place of `packed_seq_params`; attention asks it to attend. Training uses `PackedLayout`;
the sampler brings layouts of its own that read and write a KV cache.

Shape suffixes: t tokens, s sequences, l positions in a sequence, h heads, g KV heads, d head dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_ring.config.model import ModelConfig
from megatron_ring.model.attention_kernels import PackedAttention
from megatron_ring.model.kernels.rope import split_and_rotate
from megatron_ring.model.rope import rope_tables
from megatron_ring.model.routes import Routes

if TYPE_CHECKING:
    from megatron_ring.model.narrow import NarrowExperts
    from megatron_ring.parallel.graphs import SideStream


class TokenLayout(PackedSeqParams, ABC):
    """Positions of T packed tokens and the attention over them.

    `alike`: every rank that shares experts with this one is known to bring as many tokens, few, and without gradients.
    `routes`: set where somebody wants or knows the tokens' experts.
    `narrow`: the experts' weights for this pass, in the place of the model's own; without gradients.
    `idle`: bool [T], tokens that nobody reads; what is theirs need not be computed. None: all are read.
    `side`: where shared experts may run beside the routed ones; without gradients.
    `ahead`: what a layer returned, and of it what the next one's norm makes, where one kernel made both.
    """

    alike = False

    def __init__(self, positions: torch.Tensor) -> None:
        super().__init__()
        self.positions = positions
        self.routes: Routes | None = None
        self.narrow: NarrowExperts | None = None
        self.idle: torch.Tensor | None = None
        self.side: SideStream | None = None
        self.ahead: tuple[torch.Tensor, torch.Tensor] | None = None
        self._rope: tuple[torch.Tensor, torch.Tensor] | None = None

    def rope(self, model: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [T, 1, head_dim], computed once for all layers of the model that runs on this layout."""
        if self._rope is None:
            self._rope = rope_tables(self.positions, model.head_dim, model.rope_theta, model.rope_scaling)
        return self._rope

    def attend_unsplit(
        self, layer: int, qkv_tgpd: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], exact: bool
    ) -> torch.Tensor:
        """`attend`, or `attend_exactly`, of what is neither split nor rotated: qkv [T, KV heads, queries of one + 2, d] as
        `split_and_rotate` takes it, with the cos and sin of `rope` -> [T, heads, d]."""
        q_thd, k_tgd, v_tgd = split_and_rotate(qkv_tgpd, *rope)
        return (self.attend_exactly if exact else self.attend)(layer, q_thd, k_tgd, v_tgd)

    @abstractmethod
    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        """Causal attention of 1-based `layer`: q [T, heads, d], k and v [T, KV heads, d] -> [T, heads, d]."""

    @abstractmethod
    def attend_exactly(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        """`attend` for --exact: a token's bits depend on its own sequence alone, not on how it is cut into steps."""


class PackedLayout(TokenLayout):
    """Sequences packed one after another, each attending only to itself, causally. Tokens behind the last sequence are
    padding: attention returns zeros for them.

    Args:
        positions: int64 [T] on the device, restarting at 0 in each sequence.
        lengths: tokens of each sequence, at most T together. On the host, so that no layout waits for the device.
        kernel: one of `attention_kernels.KERNELS`, or None for the fastest that takes the shape.
    """

    def __init__(self, positions: torch.Tensor, lengths: Sequence[int], kernel: str | None = None) -> None:
        super().__init__(positions)
        self.lengths, self.asked_kernel = lengths, kernel
        self._attention: PackedAttention | None = None
        self._starts: torch.Tensor | None = None
        self._asked: Any = None

    @property
    def kernel(self) -> str | None:
        """What computed the attention; None before any layer has run."""
        return None if self._attention is None else self._attention.kernel

    def starts(self) -> torch.Tensor:
        """int32 [S + 1] on the device: where sequences begin, and the last one's end. Made once for all layers."""
        if self._starts is None:
            bounds = torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32)
            self._starts = bounds.to(self.positions.device, non_blocking=True)
        return self._starts

    def attend(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        return self._usual(q_thd)(q_thd, k_tgd, v_tgd)

    def attend_exactly(self, layer: int, q_thd: torch.Tensor, k_tgd: torch.Tensor, v_tgd: torch.Tensor) -> torch.Tensor:
        from megatron_ring.model.exact_attention import Asked, attend_packed

        if self._asked is None:
            group = q_thd.shape[1] // k_tgd.shape[1]
            self._asked = Asked.of_chunks(self.lengths, self.lengths, group, q_thd.device)
        return attend_packed(self._asked, self._usual(q_thd), q_thd, k_tgd, v_tgd)

    def _usual(self, q_thd: torch.Tensor) -> PackedAttention:
        if self._attention is None:
            self._attention = PackedAttention(self.lengths, q_thd.device, q_thd.dtype, q_thd.shape[2], self.asked_kernel)
        return self._attention
