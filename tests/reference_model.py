"""The published architecture once more, as plainly as possible and in float64, from the published tensors: an oracle that
shares no code with the package. One sequence at a time, loops over tokens' experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def _rope(config: dict[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [length, head_dim]; scaled frequencies as transformers computes them."""
    scaling = config.get("rope_scaling") or {"type": "default"}
    kind = scaling["type"]
    if kind == "default":
        inverse = config["rope_theta"] ** (-torch.arange(0, config["head_dim"], 2).double() / config["head_dim"])
        factor = 1.0
    else:
        parameters = {**scaling, "rope_type": kind, "rope_theta": config["rope_theta"]}
        heads, d, positions = config["num_attention_heads"], config["head_dim"], config["max_position_embeddings"]
        asked = PretrainedConfig(
            hidden_size=heads * d, num_attention_heads=heads, head_dim=d, max_position_embeddings=positions
        )
        asked.rope_theta, asked.rope_parameters, asked.rope_scaling = config["rope_theta"], parameters, parameters
        inverse, factor = ROPE_INIT_FUNCTIONS[kind](asked, torch.device("cpu"))
    angles = torch.arange(length).double()[:, None] * inverse.double()
    angles = torch.cat((angles, angles), -1)
    return angles.cos() * factor, angles.sin() * factor


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _mlp(x: torch.Tensor, w: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    gate, up, down = (w[f"{prefix}.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def _attention(x: torch.Tensor, w: dict[str, torch.Tensor], prefix: str, config: dict[str, Any]) -> torch.Tensor:
    heads, groups, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    qkv = x @ w[f"{prefix}.query_key_value.weight"].T
    if config.get("use_qkv_bias"):
        qkv = qkv + w[f"{prefix}.query_key_value.bias"]
    q, k, v = qkv.split((heads * d, groups * d, groups * d), -1)
    cos, sin = _rope(config, len(x))
    out = []
    for head in range(heads):
        group = head // (heads // groups)
        q_h = _rotate(q[:, head * d : head * d + d], cos, sin)
        k_h = _rotate(k[:, group * d : group * d + d], cos, sin)
        scores = q_h @ k_h.T / d**0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
        out.append(scores.softmax(-1) @ v[:, group * d : group * d + d])
    return torch.cat(out, -1) @ w[f"{prefix}.dense.weight"].T


def _moe(x: torch.Tensor, w: dict[str, torch.Tensor], prefix: str, config: dict[str, Any]) -> torch.Tensor:
    probabilities = (x @ w[f"{prefix}.gate.weight"].T).softmax(-1)
    out = torch.zeros_like(x)
    for t, row in enumerate(probabilities):
        top, experts = row.topk(config["num_experts_per_tok"])
        top = top / top.sum() if len(top) > 1 else top
        for weight, expert in zip(top, experts.tolist(), strict=True):
            out[t] += weight * _mlp(x[t], w, f"{prefix}.experts.{expert}")
    return out + _mlp(x, w, f"{prefix}.shared_experts") if config.get("num_shared_experts") else out


def reference_logits(tokens: torch.Tensor, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    """float64 [S, vocab] for one sequence of token ids [S]."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    eps = config["rms_norm_eps"]
    x = w["model.word_embeddings.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        x = x + _attention(_norm(x, w[f"{prefix}.input_layernorm.weight"], eps), w, f"{prefix}.attention", config)
        normed = _norm(x, w[f"{prefix}.post_attention_layernorm.weight"], eps)
        mlp = _mlp if layer < config.get("first_k_dense_replace", 0) else lambda *a: _moe(*a, config)
        x = x + mlp(normed, w, f"{prefix}.mlp")
    head = w["lm_head.weight"]
    if config.get("norm_head"):
        head = head / (head.square().sum(0, keepdim=True).sqrt() + 1e-7)
    return _norm(x, w["model.norm.weight"], eps) @ head.T
