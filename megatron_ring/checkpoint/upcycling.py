"""A dense Llama-class model's tensors as those of a Ring-style MoE that computes the same function.

With f the dense width and w = f/(S+1): a SwiGLU is a sum over its channels, so a shared expert with the first S*w of them
and routed experts with the last w, weighted by weights that sum to 1, add up to the dense MLP.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch

from megatron_ring.checkpoint.dense_sources import DenseConfig, DenseModel
from megatron_ring.config.model import ModelConfig
from megatron_ring.errors import UserError


def upcycled_shape(dense: DenseConfig, experts: int, top_k: int, shared_experts: int) -> ModelConfig:
    """Shape of the MoE. Raises `UserError` when the dense width does not divide."""
    width, rest = divmod(dense.mlp_width, shared_experts + 1)
    if rest:
        raise UserError(f"--shared-experts {shared_experts}: the dense MLP's width {dense.mlp_width} does not divide into "
                        f"{shared_experts + 1} equal parts")  # fmt: skip
    return ModelConfig(
        num_layers=dense.num_layers, hidden_size=dense.hidden_size, num_attention_heads=dense.num_attention_heads,
        num_key_value_heads=dense.num_key_value_heads, head_dim=dense.head_dim, vocab_size=dense.vocab_size,
        num_experts=experts, experts_per_token=top_k, expert_width=width, num_shared_experts=shared_experts,
        dense_width=dense.mlp_width, rope_theta=dense.rope_theta, max_positions=dense.max_positions,
        norm_eps=dense.norm_eps, init_std=dense.init_std,
    )  # fmt: skip


@dataclass
class Upcycling:
    """Gives the MoE's published tensors by name, one at a time.

    Args:
        dense: the source.
        shape: of `upcycled_shape`.
        noise: normal noise on routed experts, relative to each matrix's own standard deviation.
        router_std: standard deviation of the first router logits, roughly.
        seed: of noise and router; each tensor's numbers depend on it and the tensor's name alone.
    """

    dense: DenseModel
    shape: ModelConfig
    noise: float
    router_std: float
    seed: int

    def __post_init__(self) -> None:
        # Neighbouring experts ask for the same three matrices.
        self._read = functools.lru_cache(maxsize=3)(self.dense.read)

    def __call__(self, name: str) -> torch.Tensor:
        """The tensor of the published layout called `name`, fp32."""
        read = self._read
        if name == "model.word_embeddings.weight":
            return read("model.embed_tokens.weight")
        if not name.startswith("model.layers."):
            return read(name)  # the final norm and the head are called alike
        layer = ".".join(name.split(".")[:3])
        within = name.removeprefix(f"{layer}.")
        if within == "attention.query_key_value.weight":
            return torch.cat([read(f"{layer}.self_attn.{part}_proj.weight") for part in "qkv"])
        if within == "attention.dense.weight":
            return read(f"{layer}.self_attn.o_proj.weight")
        if within == "mlp.gate.weight":
            # The norm before the router shrinks or stretches what it sees: logits of the wanted spread follow from it.
            gain = read(f"{layer}.post_attention_layernorm.weight")
            size = (self.shape.num_experts, self.shape.hidden_size)
            return seeded_normal(self.seed, name, size) * (self.router_std / gain.norm())
        if not within.startswith("mlp."):
            return read(name)  # the layer's norms are called alike
        part = within.split(".")[-2]  # gate_proj, up_proj, down_proj
        weight, width = read(f"{layer}.mlp.{part}.weight"), self.shape.expert_width
        shared, routed = weight.split([self.shape.dense_width - width, width], dim=1 if part == "down_proj" else 0)
        if within.startswith("mlp.shared_experts."):
            return shared
        if not self.noise:
            return routed
        return routed + self.noise * routed.std() * seeded_normal(self.seed, name, routed.shape)


def seeded_normal(seed: int, name: str, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers, fp32, that depend on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)
