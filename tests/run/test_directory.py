"""Run directories: what continues one, and what is refused."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.cli import parse
from megatron_ring.config.metadata import changeable
from megatron_ring.config.rl import RLConfig
from megatron_ring.config.sft import SFTConfig
from megatron_ring.config.stage import StageConfig
from megatron_ring.errors import UserError
from megatron_ring.run.directory import RunDirectory

HERE = Path(__file__).parent
HELD_OUT = ("prompts", "every", "samples_per_problem", "temperature", "top_p", "max_new_tokens")
ALARMS = ("action", "entropy_floor", "grad_norm_factor", "reward_drop", "window", "max_rollbacks")
MEMORY_AND_SPEED = ("max_batch", "prefill_tokens", "page_size", "kv_tokens", "kv_fraction", "cuda_graphs")
TRAINING = {
    "run_dir",
    "save_every",
    "keep_last",
    "async_save",
    "layer_impl",
    "recompute",
    "exact",
    "grace_seconds",
    "parallel.tensor",
}


def test_what_a_continued_run_may_change() -> None:
    assert changeable(SFTConfig) >= TRAINING | {"max_steps", "epochs", *(f"alarms.{name}" for name in ALARMS)}
    assert changeable(RLConfig) >= TRAINING | {
        "steps", "offload_optimizer", "rewards.workers", "reference.place", "wandb.project", "wandb.name",
        "budget.max_rounds", *(f"sampling.{name}" for name in MEMORY_AND_SPEED), *(f"alarms.{name}" for name in ALARMS),
        *(f"evaluation.{name}" for name in HELD_OUT),
    }  # fmt: skip
    fixed = {"seed", "precision", "init_from", "data.prompts", "budget.tokens", "sampling.temperature", "optimizer.lr",
             "objective.name", "samples_per_prompt", "router.balance"}  # fmt: skip
    assert not fixed & changeable(RLConfig)


def recorded(stage: str, folder: Path) -> RunDirectory:
    """A run directory of release 0.1.0: its config.yaml has the settings that there were then."""
    text = (HERE / f"config_{stage}.yaml").read_text()
    (folder / "config.yaml").write_text(text)
    return RunDirectory(folder, writes=True)


FLAGS = {
    "sft": "--preset ring-tiny --data.train data/sft_train.jsonl --data.validation data/sft_validation.jsonl "
           "--data.context-length 512 --data.global-batch 1 --epochs 12 --optimizer.lr 1e-3",
    "rl": "--init-from sft/checkpoints/step_4332 --data.prompts data/rl_prompts.jsonl --data.micro-batch-tokens 2048 "
          "--steps 90 --prompts-per-step 24 --sampling.max-new-tokens 80 --objective.kl-beta 0.05 --optimizer.lr 2e-4 "
          "--optimizer.schedule cosine --optimizer.beta2 0.99 --budget.tokens 6144 --budget.scope global "
          "--rewards.workers 1 --sampling.max-batch 256",
}  # fmt: skip


def config_of(stage: str, folder: Path) -> StageConfig:
    """What the flags of that run give today."""
    common = f"--run-dir {folder} --seed 1 --data.tokenizer data/tokenizer --router.balance 1e-2 --router.z 1e-4"
    kind = {"sft": SFTConfig, "rl": RLConfig}[stage]
    return parse(kind, stage, "", f"{common} {FLAGS[stage]}".split()).resolved()


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_a_run_of_the_first_release_is_continued(stage: str, tmp_path: Path) -> None:
    run, config = recorded(stage, tmp_path), config_of(stage, tmp_path)
    run.open(config)
    after = yaml.safe_load((tmp_path / "config.yaml").read_text())
    before = yaml.safe_load((HERE / f"config_{stage}.yaml").read_text())
    assert {name: after[name] for name in before if name != "run_dir"} == {
        name: {**after[name], **value} if isinstance(value, dict) else value
        for name, value in before.items() if name != "run_dir"
    }  # fmt: skip
    run.open(replace(config, keep_last=3, recompute="full"))  # type: ignore[call-arg]
    with pytest.raises(UserError, match=r"holds a run of another configuration \(seed 1 -> 2\); choose another --run-dir"):
        run.open(replace(config, seed=2))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stage": "rl"}, "a run of stage rl, not sft"),
        ({"seed": "one"}, "seed is 'one', not a whole number"),
        ({"shape": 1}, "unknown setting shape"),
        ({"optimizer": {"moments": "fp8"}}, "optimizer.moments is 'fp8'"),
        (None, "not a run's configuration"),
    ],
)
def test_what_is_not_the_record_of_such_a_run(change: dict[str, Any] | None, reason: str, tmp_path: Path) -> None:
    run, path = recorded("sft", tmp_path), tmp_path / "config.yaml"
    text = "- a list\n" if change is None else yaml.safe_dump(yaml.safe_load(path.read_text()) | change)
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {re.escape(reason)}"):
        run.open(config_of("sft", tmp_path))
    assert path.read_text() == text


def test_what_killed_saves_left_is_room_before_anything_is_written(tmp_path: Path) -> None:
    run = recorded("sft", tmp_path)
    for folder in (tmp_path / "checkpoints", tmp_path / "reference"):
        for name in (".step_3.tmp", ".step_1.old", "step_5.tmp", ".other.tmp"):
            (folder / name).mkdir(parents=True)
            (folder / name / "data").write_text("x")
    run.open(config_of("sft", tmp_path))
    for folder in (tmp_path / "checkpoints", tmp_path / "reference"):
        assert {path.name for path in folder.iterdir()} == {"step_5.tmp", ".other.tmp"}


def test_a_directory_belongs_to_one_run_until_that_is_closed(tmp_path: Path) -> None:
    first, second, config = recorded("sft", tmp_path), RunDirectory(tmp_path, writes=True), config_of("sft", tmp_path)
    first.open(config)
    with pytest.raises(UserError, match=rf"another run is going on in it \(host .*, process {os.getpid()}\)"):
        second.open(config)
    first.close()
    second.open(config)


def test_a_place_for_checkpoints_that_cannot_be_written_is_found_at_the_start(tmp_path: Path) -> None:
    run, config = recorded("sft", tmp_path), config_of("sft", tmp_path)
    before = (tmp_path / "config.yaml").read_text()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "nowhere" / "else")
    with pytest.raises(UserError, match=r"^--run-dir \S+: cannot be written: \S*checkpoints: "):
        run.open(config)
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    """Metrics on /dev/full, as a full disk takes them."""
    run = recorded("sft", tmp_path)
    run.open(config_of("sft", tmp_path))
    run.start_logging(0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as failed:
        run.log({"step": 1, "loss": 1.0})
    assert failed.value.filename == str(tmp_path / "metrics.jsonl")
    run.close()
