"""Dense Llama-class models, read one tensor at a time: a folder in Hugging Face layout, or a GGUF file (`dense_gguf`).

Both come out under the names of Hugging Face's `LlamaForCausalLM`, in fp32, rotate-half rope, with a head of its own.
What a Ring model cannot express (biases, scaled rope, another activation, …) is refused by name before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.hf_config import read_json
from megatron_ring.errors import UserError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
QUERY, KEY = "self_attn.q_proj.weight", "self_attn.k_proj.weight"
# Settings of config.json that have one value here, which is also what a missing key means.
FOLDER_ONLY = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "quantization_config": None}
LISTED = 8  # problems that one message names


@dataclass(frozen=True)
class DenseConfig:
    """Shape of a dense Llama-class model. Raises `UserError` when the numbers contradict each other."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    tied: bool
    """The head is the embedding."""
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "tied" and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
                raise UserError(f"{name} = {value!r} must be a positive number")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(f"{self.num_key_value_heads} key-value heads do not divide {self.num_attention_heads} heads")
        if self.head_dim % 2:
            raise UserError(f"head_dim = {self.head_dim} must be even")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its Hugging Face name; a tied head is not among them."""
        hidden, width = self.hidden_size, self.mlp_width
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            QUERY: (queries, hidden),
            KEY: (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (width, hidden),
            "mlp.up_proj.weight": (width, hidden),
            "mlp.down_proj.weight": (hidden, width),
        }
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab_size, hidden), "model.norm.weight": (hidden,)}
        shapes |= {f"model.layers.{n}.{name}": shape for n in range(self.num_layers) for name, shape in layer.items()}
        return shapes if self.tied else {**shapes, HEAD: (self.vocab_size, hidden)}


@dataclass(frozen=True)
class DenseModel:
    """A dense model whose tensors are all there with the right shapes. Its file must stay where it is."""

    config: DenseConfig
    source: Path
    load: Callable[[str], torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        """fp32 tensor under its Hugging Face name, on the CPU. Raises `UserError` when it holds infinities or NaNs."""
        tensor = self.load(EMBEDDING if name == HEAD and self.config.tied else name)
        if not torch.isfinite(tensor).all():
            raise UserError(f"{self.source}: {name} holds values that are not finite")
        return tensor


def checked_config(path: Path, **values: Any) -> DenseConfig:
    """A configuration from the numbers in a file; `UserError` names the file."""
    try:
        return DenseConfig(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_tensors(source: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raise `UserError` for tensors that are missing, have no place or have another shape."""
    problems = [f"{name} is missing" for name in expected if name not in found]
    for name, shape in found.items():
        if name not in expected:
            problems.append(f"{name} has no place in a Ring model")
        elif shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(f"{source}: {'; '.join(problems[:LISTED])}{more}")


def _folder_config(path: Path) -> DenseConfig:
    values = read_json(path)
    if values.get("model_type") != "llama":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, only 'llama' and 'bailing_moe' can be read")
    for name, accepted in FOLDER_ONLY.items():
        if values.get(name, accepted) != accepted:
            raise UserError(f"{path}: {name} = {values[name]!r} cannot be expressed in a Ring model (only {accepted!r})")
    # transformers >= 5 writes rope_parameters, older versions rope_theta and rope_scaling.
    given = [values.get(name) or {} for name in ("rope_scaling", "rope_parameters")]
    if not all(isinstance(part, dict) for part in given):
        raise UserError(f"{path}: rope_scaling and rope_parameters must be objects")
    rope = {**given[0], **given[1]}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope_scaling of type {kind!r} is not carried over (only none)")
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{path}: partial_rotary_factor must be 1: Ring rotates the whole head")
    required = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    lacks = [name for name in required if not isinstance(values.get(name), int)]
    if lacks:
        raise UserError(f"{path}: lacks {', '.join(lacks)}")
    heads = values["num_attention_heads"]
    return checked_config(
        path,
        num_layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        num_attention_heads=heads,
        num_key_value_heads=values.get("num_key_value_heads") or heads,
        head_dim=values.get("head_dim") or values["hidden_size"] // max(heads, 1),
        mlp_width=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        max_positions=values.get("max_position_embeddings", 2048),
        rope_theta=rope.get("rope_theta", values.get("rope_theta", 10_000.0)),
        norm_eps=values.get("rms_norm_eps", 1e-6),
        tied=bool(values.get("tie_word_embeddings", False)),
        init_std=values.get("initializer_range", 0.02),
    )


def dense_from_folder(folder: Path) -> DenseModel:
    """A Llama in a Hugging Face folder: config.json and safetensors, one file or several. Raises `UserError`."""
    import safetensors

    config = _folder_config(folder / "config.json")
    index, files = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(Path(str(file)).name == file for file in weight_map.values()):
            raise UserError(f"{index}: has no weight_map of file names")
        files = sorted(set(weight_map.values()))
    found: dict[str, tuple[int, ...]] = {}
    file_of: dict[str, Path] = {}
    for file in files:
        try:
            with safetensors.safe_open(folder / file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (not a dict)
                    entry = stored.get_slice(name)
                    if entry.get_dtype() not in ("F32", "F16", "BF16"):
                        raise UserError(f"{folder / file}: {name} has the type {entry.get_dtype()}, not F32, F16 or BF16")
                    found[name], file_of[name] = tuple(entry.get_shape()), folder / file
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{folder / file}: cannot be read: {error}") from None
    # A tied model may have saved its head too, and old files hold the rope's frequencies: neither is a weight.
    ignored = [name for name in found if name.endswith(".rotary_emb.inv_freq") or (config.tied and name == HEAD)]
    check_tensors(folder, config.shapes(), {name: shape for name, shape in found.items() if name not in ignored})

    def load(name: str) -> torch.Tensor:
        with safetensors.safe_open(file_of[name], framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(name)
        return tensor.float()

    return DenseModel(config, folder, load)
