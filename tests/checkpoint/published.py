"""Random published folders, small, of any shape; and ways to damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from megatron_ring.config.model import ModelConfig, RopeScaling


@st.composite
def shapes(draw: Any) -> ModelConfig:
    groups = draw(st.sampled_from([1, 2, 3]))
    layers = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 5))
    scaling = st.sampled_from([RopeScaling("linear", 2.0), RopeScaling("yarn", 4.0, 512), RopeScaling("yarn", 2.5, 100, 16)])
    return ModelConfig(
        num_layers=layers,
        hidden_size=draw(st.sampled_from([4, 8])),
        num_attention_heads=groups * draw(st.integers(1, 3)),
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from([2, 4])),
        vocab_size=draw(st.sampled_from([6, 9])),
        num_experts=experts,
        experts_per_token=draw(st.integers(1, experts)),
        expert_width=draw(st.sampled_from([2, 6])),
        num_shared_experts=draw(st.integers(0, 2)),
        dense_width=draw(st.sampled_from([4, 6])),
        first_dense_layers=draw(st.integers(0, layers)),
        qkv_bias=draw(st.booleans()),
        expert_bias=draw(st.booleans()),
        rope_scaling=draw(st.none() | scaling),
    )


def random_tensors(shape: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """`dtype`: of all but expert biases, which are fp32."""
    from megatron_ring.checkpoint.tensor_rules import kept_dtype, published_shapes

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=generator).to(kept_dtype(name, dtype))
        for name, size in published_shapes(shape).items()
    }


def write_folder(folder: Path, shape: ModelConfig, tensors: dict[str, torch.Tensor], files: int = 1, **config: Any) -> Path:
    """Write it with the safetensors library, in one file or dealt to several with an index."""
    from megatron_ring.checkpoint.hf_config import config_json

    folder.mkdir(parents=True)
    written = {**config_json(shape, torch.float32, 1, 0), **config}
    (folder / "config.json").write_text(json.dumps(written))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {name: f"model-{i % files + 1}-of-{files}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Same names, and each tensor bitwise equal."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
