"""`--config FILE`: a run's own configuration gives the same run again; in one that was edited a mistake is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.config.cli import parse
from megatron_ring.config.evaluate import EvaluateConfig
from megatron_ring.config.generate import GenerateConfig
from megatron_ring.config.operations import WandbConfig
from megatron_ring.config.optimizer import OptimizerConfig
from megatron_ring.config.rl import RLConfig, RLDataConfig
from megatron_ring.config.sampling import SamplingConfig
from megatron_ring.config.sft import SFTConfig, SFTDataConfig
from megatron_ring.config.yaml_file import dump_yaml, load_config
from megatron_ring.errors import UserError
from megatron_ring.run.directory import plain
from tests.mains.conftest import command, command_of_tool, run

WHOLE: dict[str, Any] = {"run_dir": "a", "init_from": "b", "data": {"prompts": "p", "tokenizer": "t"}}
HERE = Path("here")


def written(folder: Path, values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(values if isinstance(values, str) else dump_yaml(values))
    return path


@pytest.mark.parametrize(
    "config",
    [
        SFTConfig(run_dir=HERE, data=SFTDataConfig(train=HERE, tokenizer=HERE), optimizer=OptimizerConfig(lr=1)),
        RLConfig(run_dir=HERE, init_from=HERE, data=RLDataConfig(prompts=HERE, tokenizer=HERE, drop_after=3)).resolved(),
        RLConfig(run_dir=HERE, init_from=HERE, data=RLDataConfig(prompts=HERE, tokenizer=HERE, instruction="1.10"),
                 sampling=SamplingConfig(stop_token_ids=(3, 4), stop_strings=("no", "7")), seed=-(2**63),
                 optimizer=OptimizerConfig(clip_grad=float("inf")), wandb=WandbConfig(project="2026-11-27", name="12e5")),
        EvaluateConfig(checkpoint=HERE, prompts=HERE, tokenizer=HERE, out=HERE, exact=True),
        GenerateConfig(checkpoint=HERE, tokenizer=HERE),
    ],
    ids=lambda config: type(config).__name__,
)  # fmt: skip
def test_what_a_run_records_builds_its_configuration(config: Any, tmp_path: Path) -> None:
    file = written(tmp_path, {"stage": "any", **plain(config)})
    assert load_config(type(config), file) == config
    for flags in (["--config", str(file)], [f"--config={file}"]):
        assert parse(type(config), "main", "", flags) == config
        assert parse(type(config), "main", "", ["--seed", "9", *flags]) == replace(config, seed=9)


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ({"seed": "abc"}, "seed is 'abc', not a whole number"),
        ({"seed": 1.5}, "seed is 1.5, not a whole number"),
        ({"seed": True}, "seed is True, not a whole number"),
        ({"seed": None}, "seed is None, not a whole number"),
        ({"seed": 10**26}, f"--seed is {10**26}, outside -2^63..2^63-1"),
        ({"budget": {"tokens": "many"}}, "budget.tokens is 'many', not a whole number"),
        ({"budget": {"order": "sideways"}}, "budget.order is 'sideways': use one of 'in-order', 'random', 'by-group', "),
        ({"budget": ["tokens"]}, "budget is ['tokens'], not a group of settings"),
        ({"budget": None}, "budget is None, not a group of settings"),
        ({"budget": {"tokens": 0}}, "--budget.tokens is 0, below 1"),
        ({"budget": {"token": 1}}, "unknown setting budget.token; did you mean budget.tokens?"),
        ({"epochs": 3}, "unknown setting epochs"),
        ({7: 3}, "unknown setting 7"),
        ({"objective": {"name": "ppo"}}, "objective.name is 'ppo': use one of 'c3po', 'grpo', 'dapo', 'dr-grpo' or 'gspo'"),
        ({"objective": {"name": ["c3po"]}}, "objective.name is ['c3po']: use one of 'c3po'"),
        ({"objective": {"clip": "wide"}}, "objective.clip is 'wide', not a number"),
        ({"optimizer": {"lr": [1]}}, "optimizer.lr is [1], not a number"),
        ({"optimizer": {"weight_decay": float("inf")}}, "--optimizer.weight-decay is inf, not a finite number"),
        ({"optimizer": {"eps": 10**400}}, "--optimizer.eps is inf, it must be a positive number"),
        ({"objective": {"clip": "2e-1x"}}, "objective.clip is '2e-1x', not a number"),
        ({"exact": "yes"}, "exact is 'yes', not true or false"),
        ({"exact": 1}, "exact is 1, not true or false"),
        ({"run_dir": 2026}, "run_dir is 2026, not a text in quotes"),
        ({"wandb": {"project": False}}, "wandb.project is False, not a text in quotes"),
        ({"sampling": {"stop_strings": "end"}}, "sampling.stop_strings is 'end', not a list"),
        ({"sampling": {"stop_token_ids": [3, "x"]}}, "sampling.stop_token_ids[1] is 'x', not a whole number"),
        ({"data": {"prompts": "p"}}, "data.tokenizer is missing, and has no default"),
        ({"data": {"prompts": "p", "tokeniser": "t"}}, "unknown setting data.tokeniser; did you mean data.tokenizer?"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_the_setting(edited: dict[Any, Any], said: str, tmp_path: Path) -> None:
    file = written(tmp_path, {**WHOLE, **edited})
    with pytest.raises(UserError) as refused:
        parse(RLConfig, "ring-rl", "", ["--config", str(file)])
    assert str(refused.value).startswith(f"--config {file}: ") and said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "- a\n", "a: [\n", "a: !!set {b}\n", "a: &b [*b]\n", "a: \x00\n", b"\xff\xfe\xfa", "[" * 5000]
)
def test_what_is_no_configuration(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^--config {tmp_path / 'file'}: not "):
        load_config(RLConfig, tmp_path / "file")


def test_numbers_may_be_what_yaml_takes_for_texts(tmp_path: Path) -> None:
    start = "run_dir: a\ninit_from: b\ndata: {prompts: p, tokenizer: t}\n"
    edited = "optimizer: {lr: 1e-4, beta1: 0}\nobjective: {clip: 2e-1}\n"
    assert yaml.safe_load(edited)["optimizer"]["lr"] == "1e-4"
    config = load_config(RLConfig, written(tmp_path, start + edited))
    assert config.optimizer.lr == 1e-4 and config.objective.clip == 0.2
    assert type(config.optimizer.beta1) is float


def test_one_file(tmp_path: Path) -> None:
    file = written(tmp_path, WHOLE)
    for flags, said in (
        (["--config"], "give the config.yaml of a run"), (["--config="], "give the config.yaml of a run"),
        (["--config", str(file), f"--config={file}"], "give one file"), ([f"--config={tmp_path}/none"], "No such file"),
        ([f"--config={tmp_path}"], "Is a directory"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            parse(RLConfig, "ring-rl", "", flags)


def test_mains_end_with_one_line_and_status_2(tmp_path: Path) -> None:
    without = {name: value for name, value in WHOLE.items() if name != "init_from"}
    file = written(tmp_path, without)
    seed = "99999999999999999999999999"
    for arguments, said in (
        (command("megatron_ring.rl", f"--config={file}"), f"--config {file}: init_from is missing, and has no default"),
        (command_of_tool("check_sampler.py", "--preset", "ring-tiny", "--seed", seed), f"--seed is {seed}, outside"),
    ):
        done = run(arguments)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"error: {said}" in done.stderr, done.stderr


@dataclass(frozen=True)
class Several:
    seeds: tuple[int, ...] = (1, 2)


def test_several_seeds() -> None:
    assert parse(Several, "tool", "", ["--seeds", "3", "-4"]).seeds == (3, -4)
    with pytest.raises(UserError, match=f"--seeds is {2**63}, outside"):
        parse(Several, "tool", "", ["--seeds", "3", str(2**63)])
