"""More experts: the grown model computes what the Ring model did, from a folder and from a checkpoint alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_ring.checkpoint.convert import import_folder
from tests.tools.test_upcycle import bailing_moe_logits, edit_config, fails, llama, run, save_folder

TOKENS = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def moe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Ring model of 4 different experts, with expert biases that change which are chosen."""
    dense, folder = save_folder(llama(), tmp_path / "dense"), tmp_path / "moe"
    flags = ["--experts", 4, "--top-k", 2, "--dtype", "fp32", "--shared-experts", 1, "--noise", 0.5, "--router-std", 1.0]
    run(monkeypatch, "--source", dense, "--out", folder, *flags)
    without = bailing_moe_logits(folder, TOKENS)
    weights = load_file(folder / "model.safetensors")
    biases = {f"model.layers.{n}.mlp.gate.expert_bias": torch.tensor([0.2, -0.1, 0.0, -0.2]) for n in range(2)}
    save_file({**weights, **biases}, folder / "model.safetensors")
    edit_config(moe_router_enable_expert_bias=True)(folder)
    assert (bailing_moe_logits(folder, TOKENS) - without).abs().max() > 0.05
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_it_computes_what_the_model_did(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--source", moe, "--out", tmp_path / "more", "--experts", 12, "--dtype", "fp32")
    config = json.loads((tmp_path / "more/config.json").read_text())
    assert (config["num_experts"], config["num_experts_per_tok"], config["num_shared_experts"]) == (12, 6, 1)
    torch.testing.assert_close(
        bailing_moe_logits(tmp_path / "more", TOKENS), bailing_moe_logits(moe, TOKENS), atol=1e-4, rtol=0
    )
    assert "4 experts in" in capsys.readouterr().out
    # A checkpoint of the same weights gives the same bytes; its tokenizer is named.
    import_folder(moe, tmp_path / "checkpoints/step_0")
    (tmp_path / "checkpoints/latest").write_text("step_0\n")
    given = ["--source", tmp_path / "checkpoints/latest", "--tokenizer", moe, "--experts", 12, "--dtype", "fp32"]
    run(monkeypatch, *given, "--out", tmp_path / "again")
    for path in (tmp_path / "more").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_noise_is_on_the_copies_and_fewer_experts_are_said_to_be_another_function(
    moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--source", moe, "--experts", 8, "--dtype", "fp32", "--noise", 0.1, "--top-k", 2]
    run(monkeypatch, *given, "--out", tmp_path / "more")
    assert "another function" in capsys.readouterr().out
    before, more = weights_of(moe), weights_of(tmp_path / "more")
    for name in (name for name in before if ".mlp.experts." in name):
        expert = int(name.split(".mlp.experts.")[1][0])
        copy = name.replace(f".experts.{expert}.", f".experts.{expert + 4}.")
        assert more[name].equal(before[name])
        assert 0.08 < (more[copy] - before[name]).std() / before[name].std() < 0.12
    assert json.loads((tmp_path / "more/config.json").read_text())["num_experts_per_tok"] == 2
    run(monkeypatch, "--source", moe, "--experts", 8, "--out", tmp_path / "bf16")
    kinds = {name: tensor.dtype for name, tensor in weights_of(tmp_path / "bf16").items()}
    assert {kind for name, kind in kinds.items() if name.endswith("expert_bias")} == {torch.float32}
    assert {kind for name, kind in kinds.items() if not name.endswith("expert_bias")} == {torch.bfloat16}


def test_mistakes(moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: Any, source: Path = moe) -> str:
        return fails(monkeypatch, capsys, "--source", source, "--out", tmp_path / "more", *flags)

    assert "--experts 6: the model has 4; give a multiple of them (8, 12, …)" in said("--experts", 6)
    assert "--experts 4: the model has 4" in said("--experts", 4)
    assert "--shared-experts: is for a dense source" in said("--experts", 8, "--shared-experts", 1)
    assert "--router-std: is for a dense source" in said("--experts", 8, "--router-std", 0.1)
    import_folder(moe, tmp_path / "step_0")
    assert "--tokenizer:" in said("--experts", 8, source=tmp_path / "step_0")
    assert "no such" in said("--experts", 8, "--tokenizer", tmp_path / "none", source=tmp_path / "step_0")
    assert "--tokenizer: a dense source has its own" in said("--tokenizer", moe, source=tmp_path / "dense")
    file = moe / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "experts.3.up" not in name}, file)
    assert "experts.3.up_proj.weight is missing" in said("--experts", 8)
    assert not (tmp_path / "more").exists()
