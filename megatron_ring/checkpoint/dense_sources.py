"""Dense Llama-class models, read one tensor at a time: a GGUF file, or a folder in Hugging Face layout.

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
# Name in Hugging Face's layout -> name in a GGUF file; a layer's stand after `model.layers.N.` and `blk.N.`.
GGUF_MODEL = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}
GGUF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    QUERY: "attn_q.weight",
    KEY: "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
# Settings of a GGUF file that this reader uses, and others with the value that changes nothing.
GGUF_REQUIRED = ("context_length", "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
                 "attention.layer_norm_rms_epsilon")  # fmt: skip
GGUF_OPTIONAL = ("vocab_size", "attention.head_count_kv", "attention.key_length", "attention.value_length",
                 "rope.freq_base", "rope.dimension_count")  # fmt: skip
GGUF_NEUTRAL = {"rope.scaling.type": "none", "rope.scale_linear": 1.0, "expert_count": 0, "expert_used_count": 0}
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


def _checked_config(path: Path, **values: Any) -> DenseConfig:
    try:
        return DenseConfig(**values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_tensors(source: Path, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    problems = [f"{name} is missing" for name in expected if name not in found]
    for name, shape in found.items():
        if name not in expected:
            problems.append(f"{name} has no place in a Ring model")
        elif shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UserError(f"{source}: {'; '.join(problems[:LISTED])}{more}")


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader` over the file, which it maps into memory. Raises `UserError`."""
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path}: reading GGUF takes the gguf package: pip install gguf") from None
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return gguf.GGUFReader(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, OverflowError) as error:
        raise UserError(f"{path}: not a whole GGUF file ({error})") from None


def gguf_value(reader: Any, key: str) -> Any:
    """A setting of a GGUF file as a Python value, None where it is not set. Raises `UserError`."""
    field = reader.get_field(key)
    try:
        return None if field is None else field.contents()
    except (ValueError, LookupError) as error:
        raise UserError(f"{reader.data.filename}: {key} cannot be read ({error})") from None


def _gguf_config(path: Path, reader: Any) -> DenseConfig:
    rooms = ("general", "split", "llama")  # not the tokenizer's long lists
    values = {key: gguf_value(reader, key) for key in reader.fields if key.partition(".")[0] in rooms}
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{path}: general.architecture is {architecture!r}, only 'llama' can be read")
    if values.get("split.count", 1) > 1:
        raise UserError(f"{path}: is one of {values['split.count']} parts; merge them first")
    ours = {key.removeprefix("llama."): value for key, value in values.items() if key.startswith("llama.")}
    for key, value in ours.items():
        if key not in GGUF_REQUIRED + GGUF_OPTIONAL and (key not in GGUF_NEUTRAL or value != GGUF_NEUTRAL[key]):
            raise UserError(f"{path}: llama.{key} = {value!r} is not something a Ring model can express")
        if key not in GGUF_NEUTRAL and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{path}: llama.{key} must be one number for all layers")
    if lacks := [key for key in GGUF_REQUIRED if key not in ours]:
        raise UserError(f"{path}: lacks llama.{', llama.'.join(lacks)}")
    heads, hidden = ours["attention.head_count"], ours["embedding_length"]
    head_dim = ours.get("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if ours.get(key, head_dim) != head_dim:
            raise UserError(f"{path}: llama.{key} = {ours[key]} differs from the head's width {head_dim}")
    shapes = {tensor.name: tensor.shape.tolist()[::-1] for tensor in reader.tensors}
    return _checked_config(
        path,
        num_layers=ours["block_count"],
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=ours.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_width=ours["feed_forward_length"],
        # The tensor decides: some files pad the vocabulary without saying so.
        vocab_size=shapes.get(GGUF_MODEL[EMBEDDING], [ours.get("vocab_size", 0)])[0],
        max_positions=ours["context_length"],
        rope_theta=_shortest(ours.get("rope.freq_base", 10_000.0)),
        norm_eps=_shortest(ours["attention.layer_norm_rms_epsilon"]),
        tied=GGUF_MODEL[HEAD] not in shapes,
    )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same fp32 number: 1e-5 as it was meant, not 9.999999747378752e-06."""
    return float(f"{torch.tensor(value).item():.7g}")


def dense_from_gguf(path: Path, reader: Any) -> DenseModel:
    """A Llama in a GGUF file, dequantised tensor by tensor. Raises `UserError`.

    llama.cpp rotates neighbouring pairs of a head's channels and stores the query and key rows in that order; here they
    get back into rotate-half order, [first halves, second halves] per head.
    """
    import gguf

    config = _gguf_config(path, reader)
    names = {theirs: GGUF_MODEL[theirs] for theirs in GGUF_MODEL if not (theirs == HEAD and config.tied)}
    for n in range(config.num_layers):
        names |= {f"model.layers.{n}.{theirs}": f"blk.{n}.{ours}" for theirs, ours in GGUF_LAYER.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_tensors(
        path,
        {names[name]: shape for name, shape in config.shapes().items()},
        {name: tuple(tensor.shape.tolist()[::-1]) for name, tensor in tensors.items()},
    )
    heads = {QUERY: config.num_attention_heads, KEY: config.num_key_value_heads}

    def load(name: str) -> torch.Tensor:
        stored = tensors[names[name]]
        try:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        except NotImplementedError:
            raise UserError(f"{path}: {stored.name}: no reader for the type {stored.tensor_type.name}") from None
        tensor = torch.tensor(values, dtype=torch.float32)  # a copy: the file's pages are not writable
        count = heads.get(".".join(name.split(".")[3:]))
        if count is None:
            return tensor
        return tensor.view(count, config.head_dim // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)

    return DenseModel(config, path, load)


def _folder_config(path: Path) -> DenseConfig:
    values = read_json(path)
    if values.get("model_type") != "llama":
        raise UserError(f"{path}: model_type is {values.get('model_type')!r}, only 'llama' can be read")
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
    return _checked_config(
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
    _check_tensors(folder, config.shapes(), {name: shape for name, shape in found.items() if name not in ignored})

    def load(name: str) -> torch.Tensor:
        with safetensors.safe_open(file_of[name], framework="pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(name)
        return tensor.float()

    return DenseModel(config, folder, load)
