"""The benchmark of a step's responses runs on several processes and its numbers hang together."""

from __future__ import annotations

import json

import pytest

from tests.mains.conftest import command_of_tool, run


@pytest.mark.slow
@pytest.mark.distributed
def test_bench_rollouts() -> None:
    flags = ["--responses", "64", "--samples", "8", "--tokens", "12000", "--routes", "6", "--compare", "lists"]
    done = run(command_of_tool("bench_rollouts.py", *flags, processes=2))
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["tokens"] == 64 * 12000 and out["data_ranks"] == 2
    # 16 bytes and routes, of which a replica has half; lists are three objects of 24 to 32 bytes and a pointer each, on all.
    assert 22 < out["held_bytes_per_own_token"] < 60 and out["held_bytes_per_token"] < 30
    assert out["lists"]["held_bytes_per_token"] > 90
    assert out["exchange_seconds"] > 0 and 0 < out["deal_seconds"] < out["lists"]["seconds"]
    assert 0 < out["received_gb"] <= 64 * 12000 * 22 / 1e9


def test_what_does_not_fit_is_refused() -> None:
    done = run(command_of_tool("bench_rollouts.py", "--tokens", "30000"))
    assert done.returncode == 2 and "--micro-batch-tokens" in done.stderr and done.stderr.count("\n") == 1
