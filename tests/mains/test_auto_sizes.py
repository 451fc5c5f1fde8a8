"""The sizes that an RL run chooses for itself: told, recorded, kept on continuing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.mains.conftest import command, rl_flags, run

SIZES = ("--data.micro-batch-tokens", "auto", "--sampling.max-batch", "auto")


def recorded(run_dir: Path) -> tuple[object, object]:
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    return config["data"]["micro_batch_tokens"], config["sampling"]["max_batch"]


def test_they_are_told_recorded_and_kept(tiny_data: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    flags = rl_flags(tiny_data, tmp_path / "rl", sft_checkpoint, *SIZES)
    done = run(command("megatron_ring.rl", *flags, "--steps", "1"))
    assert done.returncode == 0, done.stderr
    assert "micro-batches of up to 8,192 tokens and 16 sequences decoded together, chosen for a CPU" in done.stdout
    assert recorded(tmp_path / "rl") == (8192, 16)
    done = run(command("megatron_ring.rl", *flags, "--steps", "2", "--prompts-per-step", "4"))
    assert done.returncode == 0 and "chosen for" not in done.stdout, done.stderr
    assert recorded(tmp_path / "rl") == (8192, 16)


@pytest.mark.slow
def test_a_run_that_had_numbers_goes_on_with_them(tiny_data: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    fixed = rl_flags(tiny_data, tmp_path / "rl", sft_checkpoint, "--steps", "1", "--sampling.max-batch", "5")
    assert run(command("megatron_ring.rl", *fixed)).returncode == 0
    asked = rl_flags(tiny_data, tmp_path / "rl", sft_checkpoint, *SIZES, "--steps", "2")
    done = run(command("megatron_ring.rl", *asked))
    assert done.returncode == 0 and "chosen for" not in done.stdout, done.stderr
    assert recorded(tmp_path / "rl") == (512, 5)
    changed = rl_flags(tiny_data, tmp_path / "rl", sft_checkpoint, "--data.micro-batch-tokens", "768", "--steps", "3")
    assert run(command("megatron_ring.rl", *changed)).returncode == 0
    assert recorded(tmp_path / "rl") == (768, 5)
