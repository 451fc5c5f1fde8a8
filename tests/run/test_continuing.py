"""What a continued run says of itself: schedules that other --steps stretch, and files of rewards that were edited."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.algorithm.budget_schedule import BudgetSchedule
from megatron_ring.checkpoint.identity import weights_fingerprint
from megatron_ring.config.objective import ObjectiveConfig, ReferenceConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import UserError
from megatron_ring.rewards.composition import fingerprint
from megatron_ring.run.continuing import (
    changed_layout,
    check_compositions,
    check_content,
    stretched_rates,
    stretched_schedules,
)
from tests.rollout.test_select import make_config

CONSTANT = OptimizerConfig(lr=1e-5, schedule="constant", warmup_fraction=0.0)
COSINE = OptimizerConfig(lr=1e-5, schedule="cosine", warmup_fraction=0.0)
LINEAR = {"schedule": "linear", "final_tokens": 500, "tokens": 100, "scope": "global"}
PHI = BudgetSchedule("linear", 100, 500)


def config(steps: int, optimizer: OptimizerConfig = CONSTANT, **budget: Any) -> RLConfig:
    return dataclasses.replace(make_config(budget=budget), steps=steps, optimizer=optimizer)


def test_a_schedule_that_depends_on_the_steps_is_told_with_its_first_other_step() -> None:
    assert stretched_schedules(config(9, **LINEAR), PHI, 3, 5) == [
        "--steps was 5 and is 9, which schedules stretch to: in step 4 Phi (linear) is 250 where it was to be 400"
    ]
    (said,) = stretched_schedules(config(8, COSINE, **LINEAR), PHI, 4, 4)  # the run before was done
    assert "in step 5 Phi (linear) is 329 where it was to be 500 and the learning rate (cosine) is 5e-06 where" in said
    warming = dataclasses.replace(CONSTANT, warmup_fraction=0.5)
    (said,) = stretched_schedules(config(20, warming), BudgetSchedule("constant", 100, 100), 6, 10)
    assert "in step 7 the learning rate (constant) is 7e-06 where it was to be 1e-05" in said


def test_nothing_is_said_where_nothing_changes() -> None:
    for before in (None, 9):
        assert stretched_schedules(config(9, COSINE, **LINEAR), PHI, 3, before) == []
    assert stretched_schedules(config(9), BudgetSchedule("constant", 100, 100), 3, 5) == []
    assert stretched_schedules(config(9), BudgetSchedule("solve-rate", 100, 500), 3, 5) == []
    assert stretched_schedules(config(5, **LINEAR), PHI, 5, 4) == []  # no step is left


def test_an_edited_file_of_compositions_is_another(tmp_path: Path) -> None:
    path, declared = tmp_path / "r.json", {"a": {"parts": [{"name": "x", "domain": "math"}]}}
    path.write_text(json.dumps(declared))
    saved = {"compositions": fingerprint(path)}
    path.write_text(json.dumps(declared, indent=2))  # laid out otherwise
    check_compositions(fingerprint(path), saved)
    check_compositions(fingerprint(path), {})  # an older checkpoint
    check_compositions(None, {"compositions": None})
    declared["a"]["parts"][0]["weight"] = 2  # type: ignore[assignment]
    path.write_text(json.dumps(declared))
    with pytest.raises(UserError, match="the compositions are not those of the checkpoint") as refused:
        check_compositions(fingerprint(path), saved)
    assert fingerprint(path) in str(refused.value) and saved["compositions"] in str(refused.value)


def rl_config(**changes: Any) -> RLConfig:
    return dataclasses.replace(make_config(), **changes).resolved()


def test_replaced_and_missing_first_weights() -> None:
    """Refused where the KL reference has them; a run that has no use for them goes on."""
    plain, with_kl = (rl_config(objective=ObjectiveConfig(kl_beta=beta), reference=ReferenceConfig()) for beta in (0.0, 0.1))
    saved = {"content": {"init_from": "a"}, "policy": {"reference": 0}}
    refreshed = saved | {"policy": {"reference": 20}}
    for now in ({"init_from": "b"}, {}):
        assert check_content(plain, now, saved, {}) == {"init_from": "a"}
        assert check_content(with_kl, now, refreshed, {}) == {"init_from": "a"}
        with pytest.raises(UserError, match=r"^--init-from: the weights of --init-from: the content is not"):
            check_content(with_kl, now, saved, {})
    moved = {"init_from": ("x", "y")}
    assert check_content(with_kl, {"init_from": "a"}, saved, moved) == {"init_from": "a"}
    with pytest.raises(UserError, match="--init-from"):  # another path is meant to be other weights
        check_content(plain, {"init_from": "b"}, saved, moved)
    with pytest.raises(UserError, match=r"holds a run of another configuration \(init_from 'x' -> 'y'\)"):
        check_content(plain, {"init_from": "a"}, {}, moved)  # an older checkpoint cannot tell


def test_content_of_older_checkpoints_is_taken_as_it_is() -> None:
    config = rl_config()
    now = {"data.tokenizer": "t"}
    assert check_content(config, now, None, {"data.tokenizer": ("x", "y")}) == now  # no checkpoint yet
    assert check_content(config, now, {}, {}) == now
    with pytest.raises(UserError, match="another configuration"):
        check_content(config, now, {}, {"data.tokenizer": ("x", "y")})
    with pytest.raises(UserError, match="another configuration"):
        check_content(config, now, {"prompts": {}}, {"data.prompts": ("x", "y")})
    assert check_content(config, now, {"prompts": {"sources": ["x"]}}, {"data.prompts": ("x", "y")}) == now


def test_another_layout_and_more_epochs_are_told() -> None:
    assert changed_layout({"tensor": 1, "world_size": 2}, {"tensor": 1, "world_size": 2}) == []
    (said,) = changed_layout({"tensor": 1, "world_size": 1}, {"tensor": 2, "world_size": 2})
    assert said.startswith("another layout than before (tensor 1 -> 2, world_size 1 -> 2): ")
    assert stretched_rates(COSINE, 10, None, 20) == stretched_rates(CONSTANT, 10, 10, 20) == []
    (said,) = stretched_rates(COSINE, 10, 10, 20)
    assert said == "the epochs had 10 steps and have 20, which the learning rate (cosine) stretches to: " + (
        "in step 11 it is 5e-06 where it was to be 0"
    )


def test_weights_are_told_by_their_content(tmp_path: Path) -> None:
    def folder(name: str, byte: bytes) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"\0" * 100_000 + byte * 900_000)
        return weights_fingerprint(tmp_path / name)

    assert folder("a", b"x") == folder("moved", b"x") != folder("b", b"y")
