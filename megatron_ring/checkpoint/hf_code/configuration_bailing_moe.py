"""Configuration of a bailing_moe (Ling-lite, Ring-lite) model for transformers."""

from typing import Any

from transformers import PretrainedConfig


class BailingMoeConfig(PretrainedConfig):  # type: ignore[misc]
    """Shape of the model; the names are those of the published config.json."""

    model_type = "bailing_moe"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(
        self,
        vocab_size: int = 126_464,
        hidden_size: int = 2048,
        intermediate_size: int = 5632,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 4,
        head_dim: int | None = 128,
        num_experts: int = 64,
        num_experts_per_tok: int = 6,
        num_shared_experts: int | None = 2,
        moe_intermediate_size: int = 1408,
        first_k_dense_replace: int = 0,
        norm_topk_prob: bool = True,
        norm_head: bool = False,
        use_qkv_bias: bool = False,
        use_bias: bool = False,
        hidden_act: str = "silu",
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 600_000.0,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 32_768,
        initializer_range: float = 0.006,
        moe_router_enable_expert_bias: bool = False,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **more: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.num_shared_experts = num_shared_experts
        self.moe_intermediate_size = moe_intermediate_size
        self.first_k_dense_replace = first_k_dense_replace
        self.norm_topk_prob = norm_topk_prob
        self.norm_head = norm_head
        self.use_qkv_bias = use_qkv_bias
        self.use_bias = use_bias
        self.hidden_act = hidden_act
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.moe_router_enable_expert_bias = moe_router_enable_expert_bias
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)
        # Newer releases of transformers move these two into `rope_parameters`.
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
