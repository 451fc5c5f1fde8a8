"""bailing_moe (Ling-lite, Ring-lite) for transformers: a plain forward pass and `generate`.

It computes what the training code computes: router softmax in fp32 over all experts, the chosen weights renormalised; RoPE
in the rotate-half convention over the whole head, with YaRN or linear scaling; one SwiGLU MLP for all shared experts.
Experts run one after another: for fast serving load the folder with an inference engine.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_bailing_moe import BailingMoeConfig


def inverse_frequencies(config: BailingMoeConfig) -> Tensor:
    """Angle per position of each pair of channels, fp32 [head_dim / 2] on the CPU."""
    dim, scaling = config.head_dim, config.rope_scaling or {}
    plain = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return plain
    if kind == "linear":
        return plain / scaling["factor"]
    if kind != "yarn":
        raise ValueError(f"rope_scaling of type {kind!r} is not supported (yarn, linear)")
    original = scaling.get("original_max_position_embeddings", config.max_position_embeddings)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(scaling.get("beta_fast", 32.0))), 0)
    high = min(math.ceil(pair_that_turns(scaling.get("beta_slow", 1.0))), dim - 1)
    span = high - low if high != low else 0.001
    slowed = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    return plain / scaling["factor"] * slowed + plain * (1 - slowed)


def attention_factor(config: BailingMoeConfig) -> float:
    """What cos and sin are multiplied with: YaRN's attention temperature, 1 without scaling."""
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type", scaling.get("type")) != "yarn" or scaling["factor"] <= 1:
        return 1.0

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling["factor"]) + 1.0

    return magnitude(scaling.get("mscale", 1.0)) / magnitude(scaling.get("mscale_all_dim", 0.0))


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """States [batch, heads, tokens, head_dim] turned by their positions."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin


class BailingMoeRMSNorm(nn.Module):
    """RMSNorm, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)


class BailingMoeAttention(nn.Module):
    """Grouped-query attention; rows of `query_key_value` are all query heads, then all keys, then all values."""

    def __init__(self, config: BailingMoeConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.groups, self.dim = (
            layer, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        rows = (self.heads + 2 * self.groups) * self.dim
        self.query_key_value = nn.Linear(config.hidden_size, rows, bias=config.use_qkv_bias)
        self.dense = nn.Linear(self.heads * self.dim, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        batch, tokens, _ = hidden.shape
        heads = self.query_key_value(hidden).view(batch, tokens, -1, self.dim).transpose(1, 2)
        query, key, value = heads.split([self.heads, self.groups, self.groups], dim=1)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        repeats = self.heads // self.groups
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.dense(out.transpose(1, 2).reshape(batch, tokens, -1))


class BailingMoeMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class BailingMoeSparseMLP(nn.Module):
    """Routed experts, and the shared ones as one MLP."""

    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__()
        self.chosen, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        if config.moe_router_enable_expert_bias:
            self.gate.expert_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)
        width = config.moe_intermediate_size
        self.experts = nn.ModuleList(BailingMoeMLP(config.hidden_size, width) for _ in range(config.num_experts))
        self.shared_experts = None
        if config.num_shared_experts:
            self.shared_experts = BailingMoeMLP(config.hidden_size, width * config.num_shared_experts)

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        scores = self.gate(rows).float().softmax(dim=-1)
        bias = getattr(self.gate, "expert_bias", None)  # has a part in who is chosen, and none in the weights
        experts = (scores if bias is None else scores + bias.float()).topk(self.chosen, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.renormalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(rows)
        for expert in experts.unique().tolist():
            row, place = (experts == expert).nonzero(as_tuple=True)
            found = self.experts[expert](rows[row]) * weights[row, place, None].to(rows.dtype)
            out.index_add_(0, row, found)
        if self.shared_experts is not None:
            out = out + self.shared_experts(rows)
        return out.view_as(hidden)


class BailingMoeDecoderLayer(nn.Module):
    def __init__(self, config: BailingMoeConfig, layer: int) -> None:
        super().__init__()
        dense = layer < config.first_k_dense_replace
        self.input_layernorm = BailingMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = BailingMoeAttention(config, layer)
        self.post_attention_layernorm = BailingMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = BailingMoeMLP(config.hidden_size, config.intermediate_size) if dense else BailingMoeSparseMLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        hidden = hidden + self.attention(self.input_layernorm(hidden), cos, sin, mask, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class BailingMoePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    config_class = BailingMoeConfig
    base_model_prefix = "model"
    _no_split_modules = ("BailingMoeDecoderLayer",)
    _supports_sdpa = True
    _supports_cache_class = True

    def __init__(self, config: BailingMoeConfig, *more: Any, **named: Any) -> None:
        super().__init__(config, *more, **named)
        if config.moe_router_enable_expert_bias:  # transformers 4.57 refuses names that no parameter has
            self._keep_in_fp32_modules_strict = {*(self._keep_in_fp32_modules_strict or ()), "expert_bias"}

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, BailingMoeRMSNorm):
            nn.init.ones_(module.weight)


class BailingMoeModel(BailingMoePreTrainedModel):
    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BailingMoeDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = BailingMoeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [batch, tokens, hidden] of ids [batch, tokens], behind what the cache holds.

        `attention_mask` [batch, cached + tokens]: 0 where there is padding.
        """
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache) and not self.training:
            cache = DynamicCache()
        before = 0 if cache is None else int(cache.get_seq_length())
        tokens, device = hidden.shape[1], hidden.device
        places = torch.arange(before, before + tokens, device=device)
        mask = (torch.arange(before + tokens, device=device) <= places[:, None])[None, None]
        if attention_mask is not None:
            kept = attention_mask[:, : before + tokens].to(torch.bool)
            # A row of padding sees itself: attention to nothing is not a number.
            mask = mask & kept[:, None, None, :] | (torch.arange(before + tokens, device=device) == places[:, None])
            if position_ids is None:
                position_ids = (kept.long().cumsum(-1) - 1).clamp(min=0)[:, before:]
        positions = places[None] if position_ids is None else position_ids
        angles = positions.float()[..., None] * inverse_frequencies(self.config).to(device)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        factor = attention_factor(self.config)
        cos, sin = (angles.cos() * factor).to(hidden.dtype), (angles.sin() * factor).to(hidden.dtype)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, mask, cache)
            states.append(hidden)
        hidden = states[-1] = self.norm(hidden)
        shown = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=cache, hidden_states=tuple(states) if shown else None
        )


class BailingMoeForCausalLM(BailingMoePreTrainedModel, GenerationMixin):  # type: ignore[misc]
    def __init__(self, config: BailingMoeConfig) -> None:
        super().__init__(config)
        self.model = BailingMoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.word_embeddings = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def get_decoder(self) -> nn.Module:
        return self.model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, fp32 [batch, tokens, vocabulary]; with labels [batch, tokens] the mean loss of next tokens (-100: no)."""
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=past_key_values,
            inputs_embeds=inputs_embeds, use_cache=use_cache, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        weight = self.lm_head.weight
        if self.config.norm_head:
            weight = weight / (weight.norm(dim=0, keepdim=True) + 1e-7)
        logits = F.linear(found.last_hidden_state[:, kept], weight).float()
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device))
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=found.past_key_values, hidden_states=found.hidden_states
        )
