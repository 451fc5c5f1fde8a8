"""Shape of a model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from megatron_ring.config.checks import require


@dataclass(frozen=True)
class RopeScaling:
    """How rotary embeddings are stretched beyond the positions that the model was first trained on (`rope_scaling`)."""

    kind: Literal["yarn", "linear"]
    factor: float
    original_max_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0

    def __post_init__(self) -> None:
        require(self.kind in ("yarn", "linear"), f"rope_scaling: type {self.kind!r} is not supported (yarn, linear)")
        require(self.factor > 0, f"rope_scaling: factor is {self.factor}, it must be positive")
        require(self.original_max_positions >= 1, "rope_scaling: original_max_position_embeddings must be at least 1")


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Ring-lite-class (`bailing_moe`) Mixture-of-Experts transformer. Sizes are counts, not bytes."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int
    experts_per_token: int
    expert_width: int
    num_shared_experts: int
    dense_width: int
    first_dense_layers: int = 0
    qkv_bias: bool = False
    rope_theta: float = 600_000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 32_768
    norm_eps: float = 1e-6
    init_std: float = 0.006
    expert_bias: bool = False
    """Whether routers add a bias of each expert to its probability when they choose experts."""
    head: Literal["vocabulary", "score"] = "vocabulary"
    """What the last hidden states become: logits over the vocabulary, or one number (a reward model)."""

    def __post_init__(self) -> None:
        counts = ("num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
                  "num_experts", "experts_per_token", "expert_width", "dense_width")  # fmt: skip
        for name in counts:
            require(getattr(self, name) >= 1, f"model: {name} is {getattr(self, name)}, it must be at least 1")
        require(self.num_shared_experts >= 0, f"model: num_shared_experts is {self.num_shared_experts}, below 0")
        require(
            0 <= self.first_dense_layers <= self.num_layers,
            f"model: first_dense_layers {self.first_dense_layers} is outside 0..{self.num_layers}",
        )
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"model: {self.num_attention_heads} query heads cannot share {self.num_key_value_heads} KV heads evenly",
        )
        require(
            self.experts_per_token <= self.num_experts,
            f"model: {self.experts_per_token} experts per token of only {self.num_experts} experts",
        )
        require(self.head_dim % 2 == 0, f"model: head_dim {self.head_dim} must be even for rotary embeddings")

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> ModelConfig:
        """Undo `dataclasses.asdict`."""
        scaling = values.get("rope_scaling")
        return cls(**{**values, "rope_scaling": None if scaling is None else RopeScaling(**scaling)})

    @property
    def qkv_rows(self) -> int:
        """Rows of the query, key and value projection together."""
        return (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_dim

    @property
    def shared_width(self) -> int:
        """Width of the one SwiGLU MLP that stands for all shared experts (0: none)."""
        return self.num_shared_experts * self.expert_width

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the 0-based layer holds experts (the first `first_dense_layers` hold one dense MLP)."""
        return layer >= self.first_dense_layers
