"""The training benchmark: it runs, its numbers hang together, and its own arithmetic is right."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.presets import get_preset
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))  # the tool's parts find each other as scripts do

from bench_train_measure import kernel_class  # noqa: E402
from bench_train_work import draw_lengths, draw_tokens, training_flops  # noqa: E402


def bench(*flags: str) -> Any:
    done = run([sys.executable, ROOT / "tools" / "bench_train.py", "--preset", "ring-tiny", *flags])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("optimizer", [pytest.param(False, marks=pytest.mark.slow), True], ids=["gradients", "steps"])
def test_contenders_side_by_side(optimizer: bool) -> None:
    flags = ["--sequence-length", "64", "--sequences", "4", "--compare", "mcore-stock", "transformers", "te"]
    flags += ["apex", "--repeats", "2", "--steps", "2", "--warmup", "1"]
    flags += ["--optimizer", "--profile"] if optimizer else []
    out = bench(*flags)
    assert out["tokens_per_rank"] == 256 and out["ceilings"]["gemm_tflops"] > 0
    assert list(out["contenders"]) == ["ring", "mcore-stock", "transformers", "te", "apex"]
    if not torch.cuda.is_available():
        assert "Error" in out["contenders"].pop("te")["error"]
        why = "--optimizer.apex: NVIDIA Apex is not installed" if optimizer else "--compare apex: give --optimizer"
        assert out["contenders"].pop("apex")["error"].startswith(f"UserError: {why}")
    for result in out["contenders"].values():
        assert result["loss"] == pytest.approx(6.3, abs=0.4)  # near log(512): random weights, random targets
        assert result["tokens_per_second"] == pytest.approx(256_000 / result["step_ms"])
        assert 0 < result["mfu"] < 1 and result["spread"] >= 0
        assert result["phases_ms"]["forward"] > 0 and result["phases_ms"]["backward"] > 0
        assert ("optimizer" in result["phases_ms"]) == optimizer == ("kernels_ms" in result)
        assert sum(result["phases_ms"].values()) == pytest.approx(result["step_ms"], rel=0.5)
    assert set(out["ring_over"]) == set(out["contenders"]) - {"ring"}


@pytest.mark.slow
def test_uneven_lengths() -> None:
    flags = ["--sequence-length", "64", "--sequences", "4", "--lengths", "long-tail", "--micro-batches", "2"]
    out = bench(*flags, "--compare", "transformers", "--repeats", "1", "--steps", "1", "--warmup", "1")
    assert out["tokens_per_rank"] == 512 and out["lengths"]["max"] <= 64
    losses = [result["loss"] for result in out["contenders"].values()]
    assert losses == pytest.approx([6.3] * 2, abs=0.4)


def test_flops_are_the_published_ones() -> None:
    """0.58 GFLOP a layer and 1.55 for the head, per token at 8,192 tokens."""
    four, eight = (replace(get_preset("ring-lite"), num_layers=layers) for layers in (4, 8))
    layer = (training_flops(eight, [8192]) - training_flops(four, [8192])) / 4 / 8192
    assert layer == pytest.approx(0.58e9, rel=0.01)
    assert training_flops(four, [8192]) / 8192 - 4 * layer == pytest.approx(1.55e9, rel=0.01)
    assert training_flops(four, [4096, 4096]) < training_flops(four, [8192])


def test_padded_batches_hold_the_same_tokens() -> None:
    lengths = draw_lengths("long-tail", 4, 100, seed=3)
    batch = draw_tokens(lengths, 50, 0, torch.device("cpu"))
    padded = batch.padded()
    assert sum(lengths) == 400 and max(lengths) <= 100
    assert all(tokens.numel() <= 400 for tokens, _ in padded)
    targets = torch.cat([targets[targets >= 0] for _, targets in padded])
    assert torch.equal(targets.sort().values, batch.targets.sort().values)
    assert batch.bounds[-1] == 400 and batch.positions[batch.bounds[:-1].long()].sum() == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "dense GEMM"),
        ("void cutlass::device_kernel<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int>>>", "grouped GEMM"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_2_1_64x128x128_1x1x1", "attention"),
        ("ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "NCCL"),
        ("triton_poi_fused_mul_silu_0", "SwiGLU"),
        ("void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float>", "softmax, cross-entropy"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>", "copies, fill"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "other"),
    ],
)
def test_kernel_classes(name: str, kind: str) -> None:
    assert kernel_class(name) == kind
