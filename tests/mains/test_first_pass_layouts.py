"""RL with recomputed log-probs, a correction and replayed experts: every layout has the figures of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_ring.checkpoint.hf_config import config_json
from tests.mains.conftest import command, rl_flags
from tests.mains.test_objectives import train_here
from tests.mains.test_pipeline import metrics

MORE = ["--objective.old-logprobs", "recomputed", "--correction.name", "icepop", "--correction.routes", "replay",
        "--objective.kl-beta", "0.1", "--optimizer.lr", "1e-3", "--router.balance", "1e-2",
        # Tokens for the same micro-batches under every layout: router losses are each micro-batch's.
        "--sampling.max-new-tokens", "40", "--budget.tokens", "300"]  # fmt: skip
LAYOUTS = {"tp2": ["--parallel.tensor", "2"], "ep2": ["--parallel.expert", "2"], "pp2": ["--parallel.pipeline", "2"]}


@pytest.fixture(scope="module")
def alone(run_on: Any, tiny_data: Path, sft_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("first_pass") / "alone"
    run_on(1, train_here, rl_flags(tiny_data, out, sft_checkpoint, *MORE))
    return metrics(out)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_figures_of_one_process(
    run_on: Any, alone: Any, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, layout: str
) -> None:
    run_on(2, train_here, rl_flags(tiny_data, tmp_path / "r", sft_checkpoint, *MORE, *LAYOUTS[layout]))
    rows = metrics(tmp_path / "r")
    assert len(rows) == len(alone) == 2
    for row, other in zip(rows, alone, strict=True):
        for key in ("tokens/generated", "tokens/trained", "reward/mean", "response_length/mean"):
            assert row[key] == other[key], key
        for key in ("grad_norm", "entropy", "kl", "loss/balance", "loss/z"):
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        assert 0 <= row["mismatch/router_disagreement"] < 0.01
        for key in ("mismatch/k_p01", "mismatch/k_p50", "mismatch/k_p99"):
            assert row[key] == pytest.approx(1, abs=1e-4), key
    assert alone[1]["kl"] > 0 and alone[1]["grad_norm"] > 0


def test_replay_without_experts_is_refused(fails_with: Any, tiny_data: Path, tmp_path: Path) -> None:
    import json
    from dataclasses import replace

    import torch

    from megatron_ring.config.presets import RING_TINY

    dense = replace(RING_TINY, first_dense_layers=RING_TINY.num_layers)
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text(json.dumps(config_json(dense, torch.float32, 1, 0)))
    flags = rl_flags(tiny_data, tmp_path / "r", tmp_path / "dense", "--correction.routes", "replay")
    assert "has no mixture of experts" in fails_with(command("megatron_ring.rl", *flags))
    assert "has no mixture of experts" in fails_with(command("megatron_ring.rl", *flags, "--dry-run"))
