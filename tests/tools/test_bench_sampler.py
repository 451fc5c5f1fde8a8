"""The sampler's benchmark runs and its numbers hang together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.mains.conftest import environment


def bench(*flags: str, tool: str = "bench_sampler.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tools" / tool), *flags], capture_output=True,
                          text=True, env=environment(), timeout=200, cwd=ROOT)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["equal", "long-tail"])
def test_bench_sampler(lengths: str) -> None:
    done = bench("--prompts", "3", "--samples", "2", "--new-tokens", "9", "--repeats", "2", "--lengths", lengths)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    ring = out["ring"]
    assert ring["decoded_together_at_most"] == 6
    assert ring["prefilled_tokens"] == 3 * 39 == ring["tokens_of_prompts"] - 3  # once a prompt, its last token excepted
    assert ring["tokens"] == 54 if lengths == "equal" else 12 <= ring["tokens"] < 54
    assert ring["tokens_per_second"] > 0 and 0 < ring["of_floor"] < 1 and 0 < ring["decode_of_floor"] < 1
    assert ring["decode_tokens_per_second"] / ring["decode_floor_tokens_per_second"] == pytest.approx(
        ring["decode_of_floor"], rel=0.5  # medians of different runs
    )  # fmt: skip
    assert out["read_gb_per_second"] > 0 and 0 <= ring["host_share"] < 1


def test_what_cannot_be_compared_is_refused() -> None:
    done = bench("--compare", "transformers", "--lengths", "long-tail")
    assert done.returncode == 2 and "--lengths equal" in done.stderr and done.stderr.count("\n") == 1


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
