"""`tools/solve_rate.py` through our sampler: evaluations of shards, which are not made twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.mains.conftest import command_of_tool, run


@pytest.mark.slow
def test_shards_are_sampled_once(tiny_data: Path, tmp_path: Path) -> None:
    model, out, prompts = tmp_path / "hf", tmp_path / "rated", tmp_path / "prompts.jsonl"
    done = run([sys.executable, "tools/make_random_hf.py", "--preset", "ring-tiny", "--out", str(model)])
    assert done.returncode == 0, done.stderr
    prompts.write_text("".join((tiny_data / "heldout.jsonl").read_text().splitlines(keepends=True)[:4]))
    flags = ["--prompts", str(prompts), "--out", str(out), "--samples", "2"]
    tokenizer = str(tiny_data / "tokenizer")
    sampler = ["--", "--checkpoint", str(model), "--tokenizer", tokenizer, "--sampling.max-new-tokens", "6",
               "--rewards.workers", "1"]  # fmt: skip
    done = run(command_of_tool("solve_rate.py", *flags, "--shard", "1/2", *sampler))
    assert done.returncode == 0 and "2 of 4 problems" in done.stdout and "others are not" in done.stdout, done.stderr
    done = run(command_of_tool("solve_rate.py", *flags, *sampler))
    assert done.returncode == 0 and "2 of 4 problems" in done.stdout and "4 problems: " in done.stdout, done.stderr
    rows = [json.loads(line) for line in (out / "kept.jsonl").read_text().splitlines()]
    assert [row["metadata"]["solve_samples"] for row in rows] == [2] * 4
