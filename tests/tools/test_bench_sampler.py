"""The sampler's benchmark runs and its numbers hang together."""

from __future__ import annotations

import importlib.util
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ring.config.declarations import parameter_counts
from megatron_ring.config.parallel import ParallelConfig
from megatron_ring.config.presets import get_preset
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.errors import NotFiniteError, UserError
from tests.conftest import ROOT
from tests.processes import run

sys.path.insert(0, str(ROOT / "tools"))  # as when the tool itself runs

from sampler_floor import Floor

from tools.bench_sampler import BenchSampler
from tools.bench_sampler_compare import check_vllm
from tools.bench_sampler_figure import Turn, binned, by_rows
from tools.sampler_flags import named_as_here


def bench(
    *flags: str, tool: str = "bench_sampler.py", before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, ROOT / "tools" / tool, *flags], timeout=200, really=before is not None, preexec_fn=before)


def in_six_gb() -> None:
    """Bounds what a process may allocate; files that it maps do not count."""
    resource.setrlimit(resource.RLIMIT_DATA, (6_000_000_000, 6_000_000_000))


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["equal", "long-tail"])
def test_bench_sampler(lengths: str) -> None:
    flags = ["--both-weights"] if lengths == "equal" else []
    done = bench("--prompts", "3", "--samples", "2", "--new-tokens", "9", "--repeats", "2", "--lengths", lengths, *flags)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    ring = out["ring"]
    assert ring["decoded_together_at_most"] == 6
    assert ring["prefilled_tokens"] == 3 * 39 == ring["tokens_of_prompts"] - 3  # once a prompt, its last token excepted
    assert sum(part["passes"] for part in ring["by_rows"]) > 0 and ring["by_rows"][-1]["rows_at_most"] == 8
    assert ring["tokens"] == 54 if lengths == "equal" else 12 <= ring["tokens"] < 54
    assert ring["tokens_per_second"] > 0 and 0 < ring["of_floor"] < 1 and 0 < ring["decode_of_floor"] < 1
    assert ring["decode_tokens_per_second"] / ring["decode_floor_tokens_per_second"] == pytest.approx(
        ring["decode_of_floor"], rel=0.5  # medians of different runs
    )  # fmt: skip
    assert ring["decode_of_floor"] < ring["decode_of_floor_sum"] and 0 <= ring["decode_bound_by_reading"] <= 1
    assert out["read_gb_per_second"] > 0 and 0 <= ring["host_share"] < 1
    if flags:
        narrow = out["fp8"]
        assert narrow["tokens"] == 54 and narrow["decode_floor_tokens_per_second"] >= ring["decode_floor_tokens_per_second"]
        assert out["fp8_tokens_per_second_over_bf16"] == narrow["tokens_per_second"] / ring["tokens_per_second"]


@pytest.mark.slow
def test_mixed_settings_beside_uniform_ones() -> None:
    done = bench("--prompts", "8", "--samples", "1", "--new-tokens", "5", "--repeats", "1", "--mixed-settings")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["ring"]["tokens"] == out["mixed"]["tokens"] == 40 == 5 * out["mixed"]["decoded_together_at_most"]
    for name in ("decode_tokens_per_second", "tokens_per_second"):
        assert out[f"mixed_{name}_over_uniform"] == out["mixed"][name] / out["ring"][name] > 0


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused() -> None:
    done = bench("--compare", "transformers", "--lengths", "long-tail")
    assert done.returncode == 2 and "--lengths equal" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_is_asked_for_where_it_is_not() -> None:
    with pytest.raises(UserError, match="--compare vllm: vLLM is not installed"):
        check_vllm()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"both_weights": True, "sampling": SamplingConfig(weights="fp8")}, "--both-weights"),
        ({"both_weights": True, "exact": True}, "--both-weights"),
        ({"exact": True, "sampling": SamplingConfig(weights="fp8")}, "--sampling.weights fp8"),
        ({"compare": "vllm", "parallel": ParallelConfig(tensor=2)}, "--compare vllm: one process"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        BenchSampler(**settings)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA transformers sizes its cache itself")
def test_transformers_is_compared_in_little_memory() -> None:
    done = bench("--prompts", "3", "--samples", "2", "--new-tokens", "9", "--repeats", "1", "--compare", "transformers",
                 before=in_six_gb)  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    rivals = out["transformers"]
    assert rivals.keys() == {"generate", "generate_batch"}, done.stderr
    # One page of 256 tokens for each of six responses, half as many more, and one.
    assert rivals["generate_batch"]["cache_tokens"] == 10 * 256 and rivals["generate_batch"]["step_tokens"] == 1024
    best = max(rival["decode_tokens_per_second"] for rival in rivals.values())
    assert out["decode_tokens_per_second_over_transformers"] == out["ring"]["decode_tokens_per_second"] / best > 0


@pytest.mark.slow
def test_the_figure(tmp_path: Path) -> None:
    done = bench("--prompts", "3", "--samples", "2", "--repeats", "1", "--figure", str(tmp_path / "a.PNG"))
    assert done.returncode == 0 and json.loads(done.stdout)["ring"]["tokens"] == 6 * 64, done.stderr
    assert (tmp_path / "a.PNG").stat().st_size > 5000


def test_the_floor_counts_bytes_and_products() -> None:
    """Of a pass over the 28 layers, worked out again from the published shape."""
    shape = get_preset("ring-lite")
    floor = Floor(shape, {"read_gb_per_second": 4e3, "gemm_tflops": 800.0}, 1, 1, 3e10, 2e9, 28 * 2 * 4 * 128 * 2)
    reading, multiplying = floor.decoding(1, 1)
    assert reading == pytest.approx((2e9 + 6 / 64 * 3e10 + 28 * 2 * 4 * 128 * 2) / 4e12)
    active = parameter_counts(shape)[1] - shape.vocab_size * shape.hidden_size  # the embedding multiplies nothing
    assert multiplying == pytest.approx(2 * active / 8e14, rel=1e-3)
    assert floor.decoding(1, 10_001)[1] - multiplying == pytest.approx(28 * 4 * 16 * 128 * 10_000 / 8e14)
    # Each of 2,048 rows has 400 tokens: every expert is read, and the products are those of as many rows.
    reading, wide = floor.decoding(2048, 2048 * 400)
    assert reading == pytest.approx((3.2e10 + 2048 * 400 * floor.token_bytes) / 4e12)
    assert wide == pytest.approx(2048 * floor.decoding(1, 400)[1])
    assert replace(floor, tensor=2).decoding(8, 80)[1] == floor.decoding(8, 80)[1] / 2
    # A prompt's chunks add up to the prompt.
    assert floor.prefill(0, 512) == pytest.approx(sum(floor.prefill(start, 128) for start in range(0, 512, 128)))


def test_what_the_figure_shows() -> None:
    numbers = [(2.0, 1.0, 0.5, 0, 0, 0), (4.0, 2.0, 1.0, 6, 3, 2), (5.0, 1.0, 0.25, 2, 2, 1), (9.0, 3.0, 0.0, 0, 0, 0)]
    turns = [Turn(*turn) for turn in numbers]
    edges, rates = binned(turns, bins=2)
    assert edges == [1.0, 4.0, 9.0]
    assert rates["measured"] == [6 / 3, 2 / 4] and rates["floor"] == [6 / 1.5, 2 / 0.25]
    assert rates["decoding"] == [1.5, 1.0]
    table = by_rows([*turns, Turn(9.5, 0.5, 0.25, 3, 4, 1), Turn(9.9, 0.2, 0.1, 3, 4, 0)])  # the last one also fills
    assert table == [
        {"rows_at_most": 2, "passes": 1, "pass_ms": 1000.0, "pass_floor_ms": 250.0},
        {"rows_at_most": 4, "passes": 3, "pass_ms": pytest.approx(2500 / 3), "pass_floor_ms": pytest.approx(1250 / 3)},
    ]
    edges, rates = binned(turns)
    assert edges == [1.0, 2.0, 4.0, 5.0, 9.0] and rates["measured"] == [0, 3, 2, 0] and math.isnan(rates["floor"][3])


@pytest.mark.parametrize("tool", ["bench_sampler.py", "check_sampler.py"])
@pytest.mark.parametrize(
    ("figure", "said"),
    [("nodir/a.png", "there is no folder nodir"), ("a.foo", "name it .png, .svg or .pdf"), ("tests", "name it .png")],
)
def test_figures_that_cannot_be_written(tool: str, figure: str, said: str) -> None:
    done = bench("--preset", "ring-tiny", "--figure", figure, tool=tool)
    assert done.returncode == 2 and f"--figure {figure}: {said}" in done.stderr and done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize("tool", ["bench_sampler.py", "bench_switch.py", "check_sampler.py"])
def test_the_length_has_one_flag(tool: str) -> None:
    done = bench("--preset", "ring-tiny", "--sampling.max-new-tokens", "2", tool=tool)
    assert done.returncode == 2 and "give --new-tokens" in done.stderr and done.stderr.count("\n") == 1


TOO_LONG = [  # the model has 1,024 positions; 104 tokens take four pages of 32
    (
        ["--prompt-tokens", "1000", "--new-tokens", "25"],
        "--prompt-tokens 1,000 and --new-tokens 25 exceed the model's 1,024",
    ),
    (["--prompt-tokens", "40", "--new-tokens", "64", "--sampling.kv-tokens", "127"], "--new-tokens 64 need 128: raise it"),
]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["bench_sampler.py", "bench_switch.py", "check_sampler.py"])
@pytest.mark.parametrize(("flags", "said"), TOO_LONG)
def test_lengths_are_refused_in_the_tools_own_flags(tool: str, flags: list[str], said: str) -> None:
    done = bench("--preset", "ring-tiny", *flags, tool=tool)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert "max-new-tokens" not in done.stderr and not done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "_said"), TOO_LONG)
def test_one_token_less_is_taken(flags: list[str], _said: str) -> None:
    """By the sampler itself."""
    taken = [{"25": "24", "127": "128"}.get(flag, flag) for flag in flags]
    done = bench("--prompts", "1", "--samples", "1", "--repeats", "1", *taken)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", [UserError, NotFiniteError])
def test_what_the_sampler_refuses_names_the_tools_flag(kind: type[UserError]) -> None:
    with pytest.raises(kind, match=r"^rank 1: a KV cache of 0\.1 GiB holds 3 pages: lower --new-tokens$"), named_as_here():
        raise kind("rank 1: a KV cache of 0.1 GiB holds 3 pages: lower --sampling.max-new-tokens")


@pytest.mark.slow
def test_bench_switch() -> None:
    done = bench("--switches", "4", "--tokens", "64", "--requests", "3", "--new-tokens", "4", tool="bench_switch.py")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["train_again"] > 0 and out["sample_again"] > 0 and out["memory_gib_late"] > 0 and "offload" not in out


@pytest.mark.slow
def test_bench_switch_with_offloading() -> None:
    done = bench("--switches", "4", "--tokens", "64", "--requests", "3", "--new-tokens", "4", "--offload-optimizer",
                 tool="bench_switch.py")  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    told, parameters = out["offload"], 895_616
    assert told["moved_gb"] == pytest.approx(8e-9 * parameters, rel=0.01)  # both moments; weights are fp32 here
    assert told["freed_gb"] == pytest.approx(12e-9 * parameters, rel=0.01)  # and gradients
    assert told["to_host_gb_per_second"] == pytest.approx(told["moved_gb"] / out["send_away"])
    assert told["to_device_of_copy"] == pytest.approx(
        told["moved_gb"] / out["bring_back"] / told["copy_to_device_gb_per_second"]
    )
