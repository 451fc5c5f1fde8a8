"""The sampler's benchmark runs and its numbers hang together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.mains.conftest import environment


@pytest.mark.slow
def test_bench_sample() -> None:
    flags = ["--prompts", "3", "--samples", "2", "--new-tokens", "6", "--repeats", "2"]
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "bench_sample.py"), *flags], capture_output=True,
                          text=True, env=environment(), timeout=200, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["sequences"] == out["batch"] == 6
    assert out["decode_step_ms"] == pytest.approx(6000 / out["decode_tokens_per_second"])
    assert 0 < out["tokens_per_second"] < out["decode_tokens_per_second"] and out["read_gb_per_second"] > 0
    assert out["prefill_tokens_per_second"] > 0 and out["bandwidth_floor_tokens_per_second"] > 0
