"""Every objective as a real RL run, and that a run which refreshes its reference continues to the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.mains.conftest import command, rl_flags, run
from tests.mains.test_pipeline import RL_KEYS, metrics, timeless

LENGTH = {"maximum": 30, "cache": 20, "weight": 0.5}  # rewards that differ even where nothing is solved
RUNS: dict[str, tuple[int | None, str]] = {
    "c3po": (200, "--budget.order by-advantage --budget.schedule linear --budget.final-tokens 300 --objective.std False "
                  "--objective.kl-place reward --objective.kl-estimator k1"),
    "grpo": (None, "--objective.baseline leave-one-out --reference.place host"),
    "dapo": (None, "--objective.old-logprobs recomputed --correction.name icepop"),
    "dr-grpo": (None, "--objective.old-logprobs recomputed --correction.name kpop --objective.kl-estimator k2"),
    "gspo": (None, "--objective.kl-beta 0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def by_length(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("rewards") / "rewards.json"
    domains = ("math", "science")
    path.write_text(json.dumps({d: {"parts": [{"name": "correct", "domain": d}], "length": LENGTH} for d in domains}))
    return ["--rewards.compositions", str(path)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_every_objective_runs(
    tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, by_length: list[str], name: str
) -> None:
    budget, more = RUNS[name]
    flags = rl_flags(tiny_data, tmp_path, sft_checkpoint, *by_length, "--objective.name", name, *more.split(), budget=budget)
    done = run(command("megatron_ring.rl", *flags))
    assert done.returncode == 0 and f"samples, {name}, " in done.stdout, done.stderr
    rows = metrics(tmp_path)
    always = {key for key in RL_KEYS if key.count("/") < 2}  # a step may have prompts of one domain only
    assert len(rows) == 2 and all(row.keys() >= always for row in rows)
    assert [row["tokens/budget"] for row in rows] == [row["tokens/trained"] for row in rows]
    assert all(row["grad_norm"] > 0 for row in rows)
    responses = [json.loads(line) for line in (tmp_path / "rollouts" / "step_2.jsonl").read_text().splitlines()]
    discarded = 1 - sum(r["trained_tokens"] for r in responses) / sum(r["tokens"] for r in responses)
    assert rows[1]["tokens/discarded_fraction"] == pytest.approx(discarded)
    if name == "c3po":
        assert [row["tokens/budget"] for row in rows] == [200, 300]
    elif name == "dapo":
        kept: dict[str, set[float]] = {}
        for response in responses:
            if response["trained_tokens"]:
                assert response["trained_tokens"] == response["tokens"]
                kept.setdefault(response["prompt_id"], set()).add(response["reward"])
        assert len(kept) == 4 and all(len(rewards) > 1 for rewards in kept.values())
    else:
        assert discarded == 0
    assert rows[0]["mismatch/k_p99"] == pytest.approx(1, abs=1e-4) and rows[0]["mismatch/masked_fraction"] == 0
    assert (rows[1]["kl"] == 0) == (name == "gspo")


def train_here(flags: list[str]) -> None:
    """The main in this process."""
    from megatron_ring.config.cli import parse
    from megatron_ring.config.rl import RLConfig
    from megatron_ring.parallel import context
    from megatron_ring.rl import main

    main(parse(RLConfig, "ring-rl", "", flags))
    context.shutdown()


@pytest.mark.slow
@pytest.mark.distributed
def test_a_refreshed_reference_survives_a_stop(
    run_on: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, by_length: list[str]
) -> None:
    """Refreshed after steps 2, 4 and 6; stopped after 3 and 5, once with what a kill could leave behind."""
    more = [*by_length, "--objective.kl-beta", "0.5", "--reference.refresh-every", "2", "--save-every", "1",
            "--budget.schedule", "solve-rate", "--budget.final-tokens", "400", "--optimizer.lr", "3e-4"]  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_on(1, train_here, rl_flags(tiny_data, whole, sft_checkpoint, *more, "--steps", "7"))
    run_on(1, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more, "--steps", "3"))
    shutil.copytree(parts / "reference" / "step_2", parts / "reference" / "step_4")  # not what step 4 will hold
    run_on(1, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more, "--steps", "5", "--reference.place", "host"))
    run_on(1, train_here, rl_flags(tiny_data, parts, sft_checkpoint, *more, "--steps", "7"))
    assert timeless(metrics(parts)) == timeless(metrics(whole))
    kl = [row["kl"] for row in metrics(whole)]
    assert [value > 1e-9 for value in kl] == [False, True, False, True, False, True, False], kl
    assert sorted(path.name for path in (whole / "reference").glob("step_*")) == ["step_4", "step_6"]
