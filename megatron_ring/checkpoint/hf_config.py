"""config.json of the published (Hugging Face `bailing_moe`) layout, read and written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.hf_settings import NEUTRAL, ONLY
from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.errors import UserError

EXPERT_BIAS = "moe_router_enable_expert_bias"
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
    EXPERT_BIAS: "expert_bias",
}
# What the published configuration class takes for a key that config.json leaves out.
DEFAULTS: dict[str, Any] = {
    "num_shared_experts": 0, "first_k_dense_replace": 0, "use_qkv_bias": False, "use_bias": True, "rope_theta": 10_000.0,
    "max_position_embeddings": 16_384, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "hidden_act": "silu",
    "norm_topk_prob": True, "tie_word_embeddings": False, "norm_head": False, "rope_scaling": None,
    "quantization_config": None, "use_sliding_window": False, EXPERT_BIAS: False,
}  # fmt: skip
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
    return parse_config(read_json(path), path)


def parse_config(config: dict[str, Any], path: Path) -> tuple[ModelConfig, bool]:
    """The same of the content of `path`, which need not be there yet."""
    if config.get("model_type") != "bailing_moe":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}, only 'bailing_moe' can be imported")
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(name) or {}, dict):
            raise UserError(f"{path}: {name} is {json.dumps(config[name])}, not an object")
    rope = config.get("rope_parameters") or {}
    config = _with_rope_parameters(config, rope, path)
    for theirs, ours in FIELDS.items():
        left_out = theirs in ("head_dim", "num_shared_experts", EXPERT_BIAS) and config.get(theirs) is None
        if theirs in config and not left_out:
            _check_kind(path, theirs, ModelConfig.__annotations__[ours], config[theirs])
    if config.get("head_dim") is None and {"hidden_size", "num_attention_heads"} <= config.keys():
        config["head_dim"] = config["hidden_size"] // max(1, config["num_attention_heads"])
    config = {**DEFAULTS, **config, "rope_parameters.partial_rotary_factor": rope.get("partial_rotary_factor")}
    _check_settings(path, config)
    missing = [name for name in FIELDS if name not in config]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    values = {ours: config[theirs] for theirs, ours in FIELDS.items()}
    values["num_shared_experts"] = values["num_shared_experts"] or 0
    values["head"] = _head(config, path)
    values["expert_bias"] = bool(values["expert_bias"])
    try:
        model = ModelConfig(**values, rope_scaling=_read_scaling(config["rope_scaling"], values["max_positions"]))
    except (TypeError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
    return model, bool(config["norm_head"])


def _head(config: dict[str, Any], path: Path) -> str:
    """The model's head by `architectures`: a reward model is a sequence classifier of one label."""
    named = config.get("architectures")
    if not isinstance(named, list) or not any("ForSequenceClassification" in str(name) for name in named):
        return "vocabulary"
    labels = config.get("id2label")
    count = config.get("num_labels", len(labels) if isinstance(labels, dict) else None)
    if count != 1:  # transformers takes two where neither is said
        raise UserError(f"{path}: a sequence classifier of {count or 2} labels: only one, a reward, is supported")
    return "score"


def _with_rope_parameters(config: dict[str, Any], rope: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings with what `rope_parameters`, as transformers >= 5 writes them, say under the older names."""
    if not rope:
        return dict(config)
    scaled = rope if _scaling_kind(rope) else {}
    found = {"rope_theta": rope.get("rope_theta", config.get("rope_theta", DEFAULTS["rope_theta"])), **config}
    if found["rope_theta"] != rope.get("rope_theta", found["rope_theta"]):
        raise UserError(f"{path}: rope_theta is {found['rope_theta']}, and {rope['rope_theta']} in rope_parameters")
    older = found.get("rope_scaling") or scaled
    older = older if _scaling_kind(older) else {}
    differing = [name for name in SCALING_FIELDS if older.get(name) != scaled.get(name, older.get(name))]
    if differing or _scaling_kind(older) != _scaling_kind(scaled):
        raise UserError(f"{path}: rope_scaling is {json.dumps(older)}, and another one in rope_parameters")
    return {**found, "rope_scaling": older}


def _check_settings(path: Path, config: dict[str, Any]) -> None:
    """Refuse a setting that the model does not have: it would compute something else."""
    for name, value in config.items():
        if name in FIELDS or name in NEUTRAL or (name in DEFAULTS and name not in ONLY) or name == "head_dim":
            continue
        if name == "moe_shared_expert_intermediate_size":
            width = (config.get("num_shared_experts") or 0) * config.get("moe_intermediate_size", 0)
            accepted: tuple[Any, ...] = (width, None)
        elif name in ONLY:
            accepted = ONLY[name]
        elif value in (None, False, [], {}):
            continue  # unknown, and off
        else:
            raise UserError(
                f"{path}: {name} = {value!r} is unknown: the model may lack it; take it out if it changes nothing"
            )
        # 1 is no True, whatever Python says.
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in accepted):
            raise UserError(f"{path}: {name} = {value!r} is not supported (only {accepted[0]!r})")


def _check_kind(path: Path, name: str, kind: str, value: Any) -> None:
    """Refuse a value that is not of the kind of its field: null, text, or a fraction for a count."""
    is_bool = isinstance(value, bool)
    fits = {
        "int": isinstance(value, int) and not is_bool,
        "float": isinstance(value, int | float) and not is_bool and 0 < value < math.inf,
        "bool": is_bool,
    }[kind]
    if not fits:
        wanted = {"int": "a whole number", "float": "a positive number", "bool": "true or false"}[kind]
        raise UserError(f"{path}: {name} is {json.dumps(value)}, not {wanted}")


def _scaling_kind(values: dict[str, Any]) -> Any:
    """The type of a rope scaling; None where there is none."""
    kind = values.get("rope_type", values.get("type"))
    return None if kind == "default" else kind


def _read_scaling(values: dict[str, Any] | None, max_positions: int) -> RopeScaling | None:
    if not values:
        return None
    kind = _scaling_kind(values)
    if kind is None:
        return None
    known = {ours: values[theirs] for theirs, ours in SCALING_FIELDS.items() if values.get(theirs) is not None}
    unknown = sorted(values.keys() - SCALING_FIELDS.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if unknown:
        raise UserError(f"rope_scaling: {', '.join(unknown)} is not supported")
    if "factor" not in known:
        raise UserError("rope_scaling: lacks factor")
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"rope_scaling: {name} is {json.dumps(value)}, not a number")
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


def config_json(
    model: ModelConfig, dtype: torch.dtype, eos_id: int | list[int] | None, pad_id: int | None
) -> dict[str, Any]:
    """config.json of the published layout for `model`, with the modelling code that lies beside it."""
    name = str(dtype).removeprefix("torch.")
    scores = model.head == "score"
    kind = "ForSequenceClassification" if scores else "ForCausalLM"
    module = "modeling_bailing_moe_reward" if scores else "modeling_bailing_moe"
    return {
        "architectures": [f"BailingMoe{kind}"],
        "auto_map": {
            "AutoConfig": "configuration_bailing_moe.BailingMoeConfig",
            "AutoModel": "modeling_bailing_moe.BailingMoeModel",
            f"AutoModel{kind}": f"{module}.BailingMoe{kind}",
        },
        "model_type": "bailing_moe",
        **({"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if scores else {}),
        **{theirs: getattr(model, ours) for theirs, ours in FIELDS.items() if theirs != EXPERT_BIAS or model.expert_bias},
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
        "torch_dtype": name,
        "dtype": name,  # how newer releases of transformers call it
    }
