"""RL settings that cannot work: refused before anything is loaded, by the flag's name."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from megatron_ring.algorithm.objectives import OBJECTIVES
from megatron_ring.config.checks import check_numbers
from megatron_ring.config.cli import parse
from megatron_ring.config.rl import RLConfig
from megatron_ring.errors import UserError
from tests.mains.conftest import command, rl_flags

NOWHERE = Path("nowhere")


def parsed(*flags: str, budget: int | None = 300) -> RLConfig:
    return parse(RLConfig, "ring-rl", "", rl_flags(NOWHERE, NOWHERE, NOWHERE, *flags, budget=budget)).resolved()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--samples-per-prompt 1", "--samples-per-prompt is 1"),
        ("--samples-per-prompt 1 --objective.baseline leave-one-out --objective.std False", "--samples-per-prompt is 1"),
        ("--updates-per-step 0", "--updates-per-step is 0, below 1"),
        ("--keep-last -1", "--keep-last is -1, below 1"),
        ("--keep-last 0", "--keep-last is 0, below 1"),
        ("--optimizer.eps -1", "--optimizer.eps is -1.0, it must be a positive number"),
        ("--optimizer.eps 0", "--optimizer.eps is 0.0, it must be a positive number"),
        ("--optimizer.beta1 1.5", "--optimizer.beta1 is 1.5, outside 0..1"),
        ("--optimizer.beta1 -0.1", "--optimizer.beta1 is -0.1, outside 0..1"),
        ("--optimizer.beta2 1", "--optimizer.beta2 is 1.0, outside 0..1"),
        ("--optimizer.beta2 nan", "--optimizer.beta2 is nan, outside 0..1"),
        ("--sampling.temperature inf", "--sampling.temperature is inf: give at least 0.0001, or 0"),
        ("--sampling.temperature 1e-40", "--sampling.temperature is 1e-40: give at least 0.0001, or 0"),
        ("--sampling.temperature nan", "--sampling.temperature is nan: give at least 0.0001, or 0"),
        ("--evaluation.temperature -1", "--evaluation.temperature is -1.0: give at least 0.0001, or 0"),
        ("--evaluation.temperature 1e-5", "--evaluation.temperature is 1e-05: give at least 0.0001, or 0"),
        ("--objective.clip 1", "--objective.clip is 1.0, outside (0, 1)"),
        ("--objective.clip 0", "--objective.clip is 0.0, outside (0, 1)"),
        ("--objective.clip-high 0", "--objective.clip-high is 0.0"),
        ("--objective.kl-beta -1", "--objective.kl-beta is -1.0"),
        ("--objective.length-budget 9", "--objective.length-budget belongs to dr-grpo, --objective.name is c3po"),
        ("--objective.name grpo", "--budget: a token budget belongs to c3po, --objective.name is grpo"),
        ("--budget.max-cuts 0", "--budget.max-cuts is 0, below 1"),
        ("--reference.place none", "--reference.place is none, but --objective.kl-beta 0.001 needs a reference"),
        ("--objective.kl-beta 0 --reference.refresh-every 2", "--reference.refresh-every: there is no reference"),
        ("--reference.refresh-every 0", "--reference.refresh-every is 0"),
        ("--correction.name icepop", "it needs --objective.old-logprobs recomputed"),
        ("--correction.phi 1", "--correction.phi belongs to kpop, --correction.name is none"),
        ("--correction.name tis --correction.low 0.5", "--correction.low belongs to icepop, --correction.name is tis"),
        ("--correction.name tis --correction.cap 0.5", "--correction.cap is 0.5, below 1"),
        ("--correction.name icepop --correction.low 2", "--correction.low 2.0 and --correction.high 5.0"),
        ("--correction.name icepop --correction.high 0.9", "--correction.low 0.5 and --correction.high 0.9"),
        ("--correction.name kpop --correction.phi 0", "--correction.phi is 0.0, not a positive number"),
        ("--budget.schedule linear", "--budget.schedule linear needs --budget.final-tokens"),
        ("--budget.final-tokens 9", "--budget.final-tokens needs --budget.schedule"),
        ("--budget.schedule linear --budget.final-tokens 0", "--budget.final-tokens is 0"),
    ],
)
def test_settings_that_contradict_each_other(flags: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        parsed(*flags.split())
    assert said in str(refused.value)


def float_flags(config: Any, prefix: str = "--") -> dict[str, dataclasses.Field[Any]]:
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint, flag = hints[field.name], f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(hint):
            found |= float_flags(hint, f"{flag}.")
        elif float in (hint, *get_args(hint)):
            found[flag] = field
    return found


def field_path(flag: str) -> list[str]:
    return flag.removeprefix("--").replace("-", "_").split(".")


def replaced(config: Any, path: list[str], value: float) -> Any:
    """The configuration with another value in one of its fields."""
    first, *rest = path
    return dataclasses.replace(config, **{first: replaced(getattr(config, first), rest, value) if rest else value})


@pytest.mark.slow
def test_no_number_may_be_infinite_or_none_at_all() -> None:
    flags = float_flags(RLConfig)
    assert {"--optimizer.weight-decay", "--router.z", "--objective.kl-beta", "--alarms.reward-drop"} < flags.keys()
    defaults = parsed()
    for flag, field in flags.items():
        said = f"{re.escape(flag)}|--correction|--router: weights"
        with pytest.raises(UserError, match=said):
            parsed(f"{flag}=nan")
        for value in (math.inf, -math.inf):  # past the command line, which takes 0.1 s to read
            if value > 0 and field.metadata.get("unlimited"):
                continue
            with pytest.raises(UserError, match=said):
                check_numbers(replaced(defaults, field_path(flag), value).resolved())
    unlimited = [flag for flag, field in flags.items() if field.metadata.get("unlimited")]
    assert unlimited == ["--optimizer.clip-grad"]
    assert parsed("--optimizer.clip-grad", "inf").optimizer.clip_grad == math.inf
    with pytest.raises(UserError, match=r"^--objective.alpha-entropy is nan, not a finite number$"):
        parsed("--objective.alpha-entropy", "nan")


def test_seeds_are_those_that_torch_takes() -> None:
    import torch

    for seed in (-(2**63), 2**63 - 1):
        assert parsed("--seed", str(seed)).seed == seed
        torch.Generator().manual_seed(seed)
    for seed in (-(2**63) - 1, 2**63, 99999999999999999999999999):
        with pytest.raises(UserError, match=rf"^--seed is {seed}, outside -2\^63\.\.2\^63-1$"):
            parsed("--seed", str(seed))


@pytest.mark.parametrize(
    ("flags", "ranks", "said"),
    [
        ("", 5, "--prompts-per-step is 4, below the number of data-parallel ranks (5)"),
        ("--budget.tokens 1537", 1, "Phi = 1,537 cannot be reached: 4 round(s) of 4 prompts x 4 samples of up to 24 tokens"),
        ("--budget.tokens 1281 --budget.scope rank", 2, "Phi = 2,562 cannot be reached"),
        ("--budget.schedule solve-rate --budget.final-tokens 9999", 1, "Phi = 9,999 cannot be reached"),
        (
            "--updates-per-step 301",
            1,
            "--updates-per-step is 301: Phi = 300 (--budget.tokens) has less than a token for each",
        ),
        ("--budget.tokens 3 --budget.order by-group", 1, "Phi = 3 is less than one token for each of 4 prompts"),
    ],
)
def test_what_depends_on_the_layout(flags: str, ranks: int, said: str) -> None:
    parsed().check(4)
    with pytest.raises(UserError) as refused:
        parsed(*flags.split()).check(ranks)
    assert said in str(refused.value)


def test_updates_without_a_budget_need_a_response_each() -> None:
    parsed("--objective.name", "grpo", "--updates-per-step", "16", budget=None).check(2)
    with pytest.raises(UserError, match=r"--updates-per-step is 17: a step of 4 prompts x 4 samples has fewer responses"):
        parsed("--objective.name", "grpo", "--updates-per-step", "17", budget=None).check(2)


def test_unfinished_responses_belong_to_the_token_budget() -> None:
    with pytest.raises(UserError) as refused:
        parsed("--objective.name", "dapo", "--budget.max-cuts", "2", budget=None)
    assert "--budget: a token budget belongs to c3po, --objective.name is dapo" in str(refused.value)


def test_a_main_ends_with_one_line_and_status_2(fails_with, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path) -> None:
    start = rl_flags(tiny_data, tmp_path / "r", sft_checkpoint)
    assert "--objective.clip" in fails_with(command("megatron_ring.rl", *start, "--objective.clip", "2"), really=True)
    assert "cannot be reached" in fails_with(command("megatron_ring.rl", *start, "--budget.tokens", "99999"))
    rows = (tiny_data / "rl_prompts.jsonl").read_text().splitlines()
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join([*rows, json.dumps({"id": "x", "domain": "code", "prompt": "?", "answer": {"x": 1}})]))
    said = f"{prompts}:{len(rows) + 1}: 'answer' is of no use to domain 'code': unknown reference format"
    for flags in (["--data.prompts", str(prompts)], ["--evaluation.prompts", str(prompts), "--dry-run"]):
        assert said in fails_with(command("megatron_ring.rl", *start, *flags))
    assert not (tmp_path / "r").exists()


def test_every_objective_has_its_own_defaults_and_keeps_what_is_given() -> None:
    for name, declared in OBJECTIVES.items():
        defaults = dataclasses.asdict(declared.defaults)
        flags = ["--objective.name", name]
        objective = parsed(*flags, budget=None).objective
        assert {key: getattr(objective, key) for key in defaults} == defaults
        assert objective.length_budget == (24 if name == "dr-grpo" else None)
        flags += ["--objective.clip", "0.1", "--objective.clip-high", "0.7", "--objective.std", "False"]
        given = parsed(*flags, budget=None).objective
        assert (given.clip, given.clip_high, given.std) == (0.1, 0.7, False)
    assert parsed("--objective.clip", "0.1").objective.clip_high == 0.1
    report = parsed().objective  # the report's figures
    assert (report.name, report.clip, report.kl_beta, report.alpha_entropy) == ("c3po", 0.2, 1e-3, 5e-4)
    assert parsed("--objective.kl-beta", "0").reference.place == "none" and parsed().reference.place == "device"


def test_a_configuration_written_before_these_settings_existed_still_starts_a_run(tmp_path: Path) -> None:
    old = tmp_path / "config.yaml"
    old.write_text(
        "stage: rl\nrun_dir: a\ninit_from: b\ndata: {prompts: p, tokenizer: t}\n"
        "budget: {tokens: 6144, scope: global, max_rounds: 4}\n"
        "objective: {name: c3po, clip: 0.3, kl_beta: 0.05, alpha_entropy: 0.0005}\n"
    )
    config = parse(RLConfig, "ring-rl", "", ["--config", str(old), "--run-dir", "c"]).resolved()
    assert (config.objective.clip, config.objective.clip_high, config.objective.kl_beta) == (0.3, 0.3, 0.05)
    assert config.budget.resolve(2) == (6144, 6144) and config.reference.place == "device"


def test_replay_is_not_exact() -> None:
    from megatron_ring.config.presets import RING_TINY

    config = parsed("--exact", "--correction.routes", "replay", "--objective.old-logprobs", "recomputed")
    with pytest.raises(UserError, match="replay: weights of replayed experts"):
        config.check_model(RING_TINY)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--data.micro-batch-tokens", "43"), "--data.prompts: prompt "),
        (("--evaluation.max-new-tokens", "1020"), "--evaluation.prompts: prompt "),
    ],
)
def test_prompts_that_leave_no_room_are_refused_at_the_start(
    fails_with, tiny_data: Path, tmp_path: Path, sft_checkpoint: Path, flags: tuple[str, ...], said: str
) -> None:
    held_out = ["--evaluation.prompts", str(tiny_data / "heldout.jsonl")]
    given = rl_flags(tiny_data, tmp_path / "run", sft_checkpoint, *held_out, *flags)
    line = fails_with(command("megatron_ring.rl", *given))
    assert said in line and "leave room for" in line and not (tmp_path / "run").exists()
