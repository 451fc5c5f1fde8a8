"""A dense Llama in a GGUF file, read one tensor at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_ring.checkpoint.dense_sources import (
    EMBEDDING,
    HEAD,
    KEY,
    QUERY,
    DenseConfig,
    DenseModel,
    check_tensors,
    checked_config,
)
from megatron_ring.errors import UserError

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
    return checked_config(
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
    check_tensors(
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
