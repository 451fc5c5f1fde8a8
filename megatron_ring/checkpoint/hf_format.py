"""The published (Hugging Face `bailing_moe`) folder: config.json, safetensors with or without an index, tokenizer files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from megatron_ring.checkpoint.tensor_rules import published_shapes
from megatron_ring.config import ModelConfig
from megatron_ring.errors import UserError

SHARD_BYTES = 5 * 10**9
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
                   "vocab.json", "merges.txt", "added_tokens.json")  # fmt: skip
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
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder in Hugging Face layout") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """Model shape of a published folder, and whether its head is normalised (`norm_head`).

    Raises:
        UserError: a missing or unsupported setting, by name.
    """
    path = folder / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "bailing_moe":
        raise UserError(f"{path}: model_type is {config.get('model_type')!r}, only 'bailing_moe' can be imported")
    for name, accepted in (("use_qkv_bias", False), ("use_bias", False), ("rope_scaling", None), ("hidden_act", "silu"),
                           ("norm_topk_prob", True), ("tie_word_embeddings", False)):  # fmt: skip
        if config.get(name, accepted) != accepted:
            raise UserError(f"{path}: {name} = {config[name]!r} is not supported yet (only {accepted!r})")
    missing = [name for name in FIELDS if name not in config and name != "first_k_dense_replace"]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    values = {ours: config[theirs] for theirs, ours in FIELDS.items() if theirs in config}
    return ModelConfig(**values), bool(config.get("norm_head", False))


def config_json(model: ModelConfig, dtype: torch.dtype, eos_id: int, pad_id: int) -> dict[str, Any]:
    """config.json of the published layout for `model`."""
    return {
        "architectures": ["BailingMoeForCausalLM"],
        "model_type": "bailing_moe",
        **{theirs: getattr(model, ours) for theirs, ours in FIELDS.items()},
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "norm_head": False,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "use_bias": False,
        "use_qkv_bias": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "output_router_logits": False,
        "use_cache": True,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def tensor_files(folder: Path) -> dict[str, Path]:
    """Published tensor name -> the safetensors file that holds it.

    Raises:
        UserError: no safetensors file, or an index that names a missing one.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = {name: folder / file for name, file in _read_json(index).get("weight_map", {}).items()}
        for path in sorted(set(files.values())):
            if not path.exists():
                raise UserError(f"{index}: names {path.name}, which is missing")
        return files
    single = folder / "model.safetensors"
    if not single.exists():
        raise UserError(f"{folder}: holds neither model.safetensors nor model.safetensors.index.json")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def open_tensors(folder: Path, model: ModelConfig, norm_head: bool) -> Callable[[str], torch.Tensor]:
    """A source of published tensors for `weights.fill_from`, checked by name and shape before any is read.

    With `norm_head` the head's columns are scaled to unit L2 norm over the vocabulary (+1e-7), as the published model does
    in each forward: folded once here.
    """
    files, expected = tensor_files(folder), published_shapes(model)
    problems = [f"{name} is missing" for name in sorted(expected.keys() - files.keys())]
    problems += [f"{name} is unexpected" for name in sorted(files.keys() - expected.keys())]
    handles = {path: safe_open(path, framework="pt") for path in sorted(set(files.values()))}
    for name in sorted(expected.keys() & files.keys()):
        shape = tuple(handles[files[name]].get_slice(name).get_shape())
        if shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(f"{folder}: {'; '.join(problems[:5])}{more}")

    def read(name: str) -> torch.Tensor:
        tensor = handles[files[name]].get_tensor(name)
        if name == "lm_head.weight" and norm_head:
            weight = tensor.float()
            tensor = (weight / (weight.norm(p=2, dim=0, keepdim=True) + 1e-7)).to(tensor.dtype)
        return tensor

    return read


def write_folder(
    out: Path, tensors: Iterable[tuple[str, torch.Tensor]], config: dict[str, Any], tokenizer: Path | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:  # fmt: skip
    """Write a published folder, whole or not at all: everything goes to `OUT.tmp`, which is renamed at the end.

    Raises:
        UserError: `out` exists already, or the disk is full.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or choose another folder")
    work = out.with_name(out.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        _write_tensors(work, tensors, shard_bytes)
        (work / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": config["pad_token_id"]}
        (work / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
        for name in TOKENIZER_FILES:
            if tokenizer is not None and (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, work / name)
        os.replace(work, out)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(f"--out {out}: {error.strerror or error}; nothing was written") from None


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    paths: list[Path] = []
    weight_of: dict[str, int] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"shard-{len(paths)}.safetensors"
        save_file(shards[-1], path, metadata={"format": "pt"})
        paths.append(path)
        shards[-1] = {}

    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        if size and size + tensor.nbytes > shard_bytes:
            flush()
            size = 0
        shards[-1][name] = tensor
        weight_of[name] = len(paths)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    if len(paths) == 1:
        os.replace(paths[0], folder / "model.safetensors")
        return
    names = [f"model-{i + 1:05d}-of-{len(paths):05d}.safetensors" for i in range(len(paths))]
    for path, name in zip(paths, names, strict=True):
        os.replace(path, folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[i] for name, i in weight_of.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
