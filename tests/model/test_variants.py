"""Everything that published configurations may switch on, against a plain float64 model that shares no code with ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring.config.model import ModelConfig, RopeScaling
from megatron_ring.config.parallel import ParallelConfig
from tests.checkpoint.published import random_tensors, write_folder
from tests.layouts import LAYOUTS
from tests.reference_model import reference_logits

PLAIN = ModelConfig(
    num_layers=3, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=51, num_experts=4,
    experts_per_token=2, expert_width=12, num_shared_experts=2, dense_width=20, rope_theta=10_000.0, max_positions=64,
)  # fmt: skip
YARN = RopeScaling("yarn", 4.0, 16, beta_fast=8.0)
VARIANTS = {
    "plain": (PLAIN, False),
    "normalised head": (PLAIN, True),
    "bias": (replace(PLAIN, qkv_bias=True), False),
    "first layer dense": (replace(PLAIN, first_dense_layers=1), False),
    "all layers dense": (replace(PLAIN, first_dense_layers=3), False),
    "no shared expert": (replace(PLAIN, num_shared_experts=0), False),
    "one expert a token": (replace(PLAIN, experts_per_token=1), False),
    "yarn": (replace(PLAIN, rope_scaling=YARN), False),
    "yarn of equal scales": (replace(PLAIN, rope_scaling=replace(YARN, mscale=0.7, mscale_all_dim=0.7)), False),
    "linear": (replace(PLAIN, rope_scaling=RopeScaling("linear", 3.0)), False),
    "everything": (replace(PLAIN, qkv_bias=True, first_dense_layers=1, rope_scaling=YARN), True),
}


def logits_of(folder: Path, tokens: torch.Tensor, parallel: ParallelConfig) -> torch.Tensor:
    """This process's columns of the logits, padded ones included."""
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import forward_all_stages
    from megatron_ring.run.stage import open_model, resolve_shape

    stage = open_model(ModelOptions(parallel=parallel, precision="fp32"), resolve_shape(None, folder), folder)
    logits = forward_all_stages(stage.model.eval(), tokens, PackedLayout(torch.arange(len(tokens)), [len(tokens)]))
    assert logits is not None
    return logits


def reference(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    config = json.loads((folder / "config.json").read_text())
    return reference_logits(tokens, load_file(folder / "model.safetensors"), config)


@pytest.mark.distributed
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_plain_model(run_on, tmp_path: Path, name: str) -> None:
    shape, norm_head = VARIANTS[name]
    tensors = {key: value * (0.3 if value.ndim > 1 else 1.0) for key, value in random_tensors(shape, seed=3).items()}
    folder = write_folder(tmp_path / "hf", shape, tensors, norm_head=norm_head)
    tokens = torch.randint(0, shape.vocab_size, (40,), generator=torch.Generator().manual_seed(1))
    (alone,) = run_on(1, logits_of, folder, tokens, ParallelConfig())
    wanted = reference(folder, tokens)
    assert (alone - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    if name != "everything":
        return
    for layout in ("tp2", "ep2"):
        processes, parallel = LAYOUTS[layout]
        parts = run_on(processes, logits_of, folder, tokens, parallel)
        together = torch.cat(parts, 1) if layout == "tp2" else parts[0]
        assert (together[:, : shape.vocab_size] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert (together[:, shape.vocab_size :].softmax(-1) <= 1.0).all()
        assert (together.softmax(-1)[:, shape.vocab_size :] == 0).all()


def test_the_plain_model_agrees_with_the_public_one(golden: Path) -> None:
    for folder in sorted(golden.glob("bailing*")):
        expected = load_file(folder / "expected.safetensors")
        for tokens, wanted in zip(expected["input_ids"], expected["logits"], strict=True):
            assert (reference(folder, tokens) - wanted).abs().max() <= 2e-5
