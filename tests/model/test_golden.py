"""The model against the public modelling code's logits, hidden states and router logits, under every layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ring.config.parallel import ParallelConfig
from tests.layouts import LAYOUTS
from tests.mains.conftest import command_of_tool, run

CHECKPOINTS = ("bailing_moe_tiny", "bailing_moe_tiny_norm_head")
MORE = {
    "pp3": (3, ParallelConfig(pipeline=3)),
    "tp2_pp2": (4, ParallelConfig(tensor=2, pipeline=2)),
}


def differences(folder: Path, parallel: ParallelConfig, expected: Path) -> dict[str, float]:
    from megatron_ring.checkpoint.parity import largest_differences
    from megatron_ring.config.stage import ModelOptions
    from megatron_ring.run.stage import open_model, resolve_shape

    stage = open_model(ModelOptions(parallel=parallel, precision="fp32"), resolve_shape(None, folder), folder)
    return largest_differences(stage.model, stage.context, load_file(expected))


@pytest.mark.distributed
@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("layout", [name for name in (*LAYOUTS, *MORE) if name != "dp2"])
def test_logits_and_layers_match_the_public_model(run_on, golden: Path, name: str, layout: str) -> None:
    """Three layers over two stages: an uneven pipeline too."""
    processes, parallel = (LAYOUTS | MORE)[layout]
    seen = run_on(processes, differences, golden / name, parallel, golden / name / "expected.safetensors")
    assert all(found == seen[0] for found in seen)
    layers = {f"hidden_states/{i}" for i in range(4)} | {f"router_logits/{i}" for i in range(3)}
    assert seen[0].keys() == {"logits", *layers}
    assert max(seen[0].values()) <= 2e-5, seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_import_and_export_keep_the_logits(run_on, golden: Path, tmp_path: Path, name: str) -> None:
    """By the tool, as a user would; a normalised head is folded on the way."""
    checkpoint, back = tmp_path / "ckpt", tmp_path / "back"
    importing = ("import", "--hf", str(golden / name), "--out", str(checkpoint))
    exporting = ("export", "--checkpoint", str(checkpoint), "--out", str(back), "--like", str(golden / name))
    for flags in (importing, exporting):
        done = run(command_of_tool("convert_hf.py", *flags))
        assert done.returncode == 0 and "380,864 parameters" in done.stdout, done.stderr
    assert json.loads((back / "config.json").read_text())["norm_head"] is False
    for folder in (checkpoint, back):
        (found,) = run_on(1, differences, folder, ParallelConfig(), golden / name / "expected.safetensors")
        assert max(found.values()) <= 2e-5, found
    assert run(command_of_tool("convert_hf.py", *importing)).returncode == 2  # never over an existing folder


@pytest.mark.slow
def test_the_tool_says_yes_and_no(golden: Path, tmp_path: Path) -> None:
    folder = golden / CHECKPOINTS[1]
    flags = ("--hf", str(folder), "--expected", str(folder / "expected.safetensors"))
    done = run(command_of_tool("verify_hf.py", *flags, "--parallel.tensor", "2", processes=2))
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["passed"] and result["max_abs_logit_difference"] <= 2e-5, done.stderr
    wrong = load_file(folder / "expected.safetensors")
    wrong["logits"] = wrong["logits"].clone()
    wrong["logits"][1, 3, 400] += 1e-3
    save_file(wrong, tmp_path / "wrong.safetensors")
    done = run(command_of_tool("verify_hf.py", *flags[:2], "--expected", str(tmp_path / "wrong.safetensors")))
    assert done.returncode == 1 and json.loads(done.stdout)["max_abs_logit_difference"] == pytest.approx(1e-3, rel=0.1)
    wrong["router_logits"] = torch.full_like(wrong["router_logits"], float("nan"))
    save_file(wrong, tmp_path / "nan.safetensors")
    done = run(command_of_tool("verify_hf.py", *flags[:2], "--expected", str(tmp_path / "nan.safetensors"),
                               "--tolerance", "1"))  # fmt: skip
    assert done.returncode == 1, done.stdout
