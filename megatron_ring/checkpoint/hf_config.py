"""config.json of the published (Hugging Face `bailing_moe`) layout, read and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.errors import UserError

FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "num_experts": "num_experts",
    "num_experts_per_tok": "experts_per_token",
    "moe_intermediate_size": "expert_width",
    "num_shared_experts": "num_shared_experts",
    "intermediate_size": "dense_width",
    "first_k_dense_replace": "first_dense_layers",
    "use_qkv_bias": "qkv_bias",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
}
# What the published configuration class takes for a key that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "num_shared_experts": 0, "first_k_dense_replace": 0, "use_qkv_bias": False, "use_bias": True, "rope_theta": 10_000.0,
    "max_position_embeddings": 16_384, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "hidden_act": "silu",
    "norm_topk_prob": True, "tie_word_embeddings": False, "norm_head": False, "rope_scaling": None,
    "quantization_config": None, "use_sliding_window": False,
}  # fmt: skip
# The only value of a setting that this model has.
ONLY = {"use_bias": False, "hidden_act": "silu", "norm_topk_prob": True, "tie_word_embeddings": False,
        "quantization_config": None, "use_sliding_window": False}  # fmt: skip
SCALING_FIELDS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_positions",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, no key twice. Raises `UserError`."""
    try:
        content = json.loads(path.read_text(), object_pairs_hook=no_duplicates)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder in Hugging Face layout") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """Model shape of a published folder, and whether its head is normalised (`norm_head`).

    Raises:
        UserError: a missing or unsupported setting, by name.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("model_type") != "bailing_moe":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}, only 'bailing_moe' can be imported")
    rope = config.get("rope_parameters") or {}  # how transformers >= 5 writes it
    if rope:
        config.setdefault("rope_theta", rope.get("rope_theta", DEFAULTS["rope_theta"]))
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", rope)
    if config.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= config.keys():
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    config = {**DEFAULTS, **config}
    for name, accepted in ONLY.items():
        if config[name] != accepted:
            raise UserError(f"{path}: {name} = {config[name]!r} is not supported (only {accepted!r})")
    missing = [name for name in FIELDS if name not in config]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    values = {ours: config[theirs] for theirs, ours in FIELDS.items()}
    values["num_shared_experts"] = values["num_shared_experts"] or 0
    try:
        model = ModelConfig(**values, rope_scaling=_read_scaling(config["rope_scaling"], values["max_positions"]))
    except (TypeError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
    return model, bool(config["norm_head"])


def _read_scaling(values: dict[str, Any] | None, max_positions: int) -> RopeScaling | None:
    if not values:
        return None
    kind = values.get("rope_type", values.get("type"))
    if kind in (None, "default"):
        return None
    known = {ours: values[theirs] for theirs, ours in SCALING_FIELDS.items() if values.get(theirs) is not None}
    unknown = sorted(values.keys() - SCALING_FIELDS.keys() - {"rope_type", "type", "rope_theta"})
    if unknown:
        raise UserError(f"rope_scaling: {', '.join(unknown)} is not supported")
    if "factor" not in known:
        raise UserError("rope_scaling: lacks factor")
    if kind == "linear":
        return RopeScaling("linear", known["factor"])
    return RopeScaling(kind=kind, **{"original_max_positions": max_positions, **known})


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    # The public modelling code reads `type`, newer libraries `rope_type`.
    named = {"type": scaling.kind, "rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "linear":
        return named
    return {**named, **{theirs: getattr(scaling, ours) for theirs, ours in SCALING_FIELDS.items()}}


def config_json(model: ModelConfig, dtype: torch.dtype, eos_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of the published layout for `model`."""
    return {
        "architectures": ["BailingMoeForCausalLM"],
        "model_type": "bailing_moe",
        **{theirs: getattr(model, ours) for theirs, ours in FIELDS.items()},
        "rope_scaling": _scaling_json(model.rope_scaling),
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "norm_head": False,
        "tie_word_embeddings": False,
        "use_bias": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "use_cache": True,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
