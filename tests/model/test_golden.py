"""The model against the public modelling code's logits and hidden states, under every layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_ring.config import ParallelConfig
from tests.layouts import LAYOUTS

CHECKPOINTS = ("bailing_moe_tiny", "bailing_moe_tiny_norm_head")


def largest_difference(folder: Path, parallel: ParallelConfig) -> dict[str, float]:
    """Largest |difference| of this rank's part of the logits, and of its layers' outputs."""
    from megatron_ring.checkpoint import hf_format
    from megatron_ring.checkpoint.weights import fill_from
    from megatron_ring.model.layout import PackedLayout
    from megatron_ring.model.ring_model import build_model, forward_packed
    from megatron_ring.parallel import collectives, context

    shape, norm_head = hf_format.read_config(folder)
    here = context.initialize(parallel, shape, seed=0)
    model = build_model(shape, here).eval()
    fill_from(hf_format.open_tensors(folder, shape, norm_head), model, here)
    expected = load_file(folder / "expected.safetensors")
    tokens = expected["input_ids"].flatten()
    layout = PackedLayout(torch.arange(48).repeat(2), [48, 48])
    hidden: dict[int, torch.Tensor] = {}
    for layer in model.decoder.layers:
        layer.register_forward_hook(lambda m, _, out: hidden.__setitem__(m.layer_number, out[0]))
    with torch.no_grad():
        if not here.first_stage:
            shape_in = (tokens.numel() // parallel.tensor, 1, shape.hidden_size)
            model.set_input_tensor(collectives.receive_from_previous_stage(shape_in, torch.float32, here.device))
        out = forward_packed(model, tokens, layout)
        if not here.last_stage:
            collectives.send_to_next_stage(out)
    found: dict[str, Any] = {}
    if here.last_stage:
        wanted = expected["logits"].flatten(0, 1).chunk(parallel.tensor, dim=1)[here.tensor_rank]
        found["logits"] = (out - wanted).abs().max().item()
    for number, value in hidden.items():
        if number < shape.num_layers:  # the last expected one is taken after the final norm
            wanted = expected["hidden_states"][number].flatten(0, 1).chunk(parallel.tensor)[here.tensor_rank]
            found[f"layer {number}"] = (value[:, 0] - wanted).abs().max().item()
    return found


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "dp2" and "pp" not in name])
def test_logits_and_layers_match_the_public_model(run_on, golden: Path, name: str, layout: str) -> None:
    processes, parallel = LAYOUTS[layout]
    seen = run_on(processes, largest_difference, golden / name, parallel)
    differences = {key: value for found in seen for key, value in found.items()}
    assert {"logits", "layer 1", "layer 2"} <= differences.keys()
    assert max(differences.values()) <= 2e-5, differences


@pytest.mark.distributed
def test_pipeline_stages_match_the_public_model(run_on, golden: Path) -> None:
    """The golden models have three layers: PP=3."""
    seen = run_on(3, largest_difference, golden / CHECKPOINTS[0], replace(ParallelConfig(), pipeline=3))
    differences = {key: value for found in seen for key, value in found.items()}
    assert {"logits", "layer 1", "layer 2"} <= differences.keys()
    assert max(differences.values()) <= 2e-5, differences
