"""The pipeline of Ring-lite-2507 in small: its data, what its evaluations say, and all of it in one go."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ring.curate import CurateConfig
from megatron_ring.curate import main as curate
from megatron_ring.data.files import read_prompts, read_sft
from megatron_ring.data.preference_files import read_preference_file
from megatron_ring.data.schedule import read_schedule
from megatron_ring.errors import UserError
from megatron_ring.rewards.composition import read_compositions
from megatron_ring.rewards.scorer import check_answers
from megatron_ring.toy.general import quality
from tests.conftest import ROOT
from tests.mains.conftest import command_of_tool, run
from tests.processes import forked_python
from tools import study_general
from tools.general_result import MEASURES, measured
from tools.study_jobs import check


def test_the_files_of_general_tasks(tiny_data: Path, tmp_path: Path, fails_with: Callable[..., str]) -> None:
    """Held-out prompts are in no other file, the replay has its share, an evaluation is measured as by hand."""
    for name in ("sft_train.jsonl", "sft_validation.jsonl", "rl_prompts.jsonl", "heldout.jsonl"):
        (tmp_path / name).symlink_to(tiny_data / name)
    flags = (
        "--data",
        str(tmp_path),
        "--train",
        "60",
        "--rl",
        "60",
        "--heldout",
        "30",
        "--pairs",
        "60",
        "--vocab-size",
        "400",
    )
    done = run(command_of_tool("make_general_data.py", *flags, "--replay", "0.25"))
    assert done.returncode == 0, done.stderr
    heldout = {record.prompt for record in read_prompts(tmp_path / "general_heldout.jsonl")}
    trained = {row.messages[0].content for row in read_sft(tmp_path / "general_sft_train.jsonl")}
    trained |= {str(record.prompt) for record in read_prompts(tmp_path / "general_prompts.jsonl")}
    trained |= {
        json.loads(line)["prompt"] for line in (tmp_path / "general_preferences_train.jsonl").read_text().splitlines()
    }
    assert len(heldout) >= 28 and not heldout & trained
    assert len(read_preference_file(tmp_path / "general_preferences_train.jsonl").records) > 50
    mixed, alone = (read_schedule(tmp_path / f"general_{name}.json") for name in ("replay", "alone"))
    assert len(alone.sources) == 3 and len(mixed.sources) == 4
    assert mixed.stages[0].shares[0] * 3 == sum(mixed.stages[0].shares[1:])
    assert "--replay lies between" in fails_with(command_of_tool("make_general_data.py", *flags, "--replay", "1"))

    asked = tmp_path / "general_heldout_all.jsonl"
    rows, expected = [], []
    for number, record in enumerate(read_prompts(asked)):
        said = (record.metadata["best"], "", record.metadata["opponent"])[number % 3] if "best" in record.metadata else "x"
        rows.append(
            {"id": record.id, "domain": record.domain, "prompt": record.prompt, "response": said, "reward": number % 2}
        )
        if record.domain == "reward-model":
            best, other = record.metadata["best"], record.metadata["opponent"]
            expected.append(
                0.5 if quality(best, said) == quality(best, other) else float(quality(best, said) > quality(best, other))
            )
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measured(tmp_path, asked)
    assert found["win rate"]["value"] == pytest.approx(sum(expected) / len(expected)) and 0 < found["win rate"]["value"] < 1
    math = [row["reward"] for row in rows if row["domain"] in ("math", "science")]
    assert found["reasoning"]["value"] == pytest.approx(sum(math) / len(math)) and found["reasoning"]["prompts"] == len(math)
    assert found["reasoning"]["low"] < found["reasoning"]["value"] < found["reasoning"]["high"]
    (tmp_path / "samples.jsonl").write_text(json.dumps(rows[0] | {"id": "x"}) + "\n")
    with pytest.raises(UserError, match="'x' is no prompt"):
        measured(tmp_path, asked)
    tool = [
        sys.executable,
        "tools/general_result.py",
        "--evaluation",
        str(tmp_path),
        "--prompts",
        str(tiny_data / "heldout.jsonl"),
    ]
    assert "is no prompt of" in fails_with(tool)


@pytest.mark.slow
def test_the_whole_pipeline_in_one_command(tmp_path: Path) -> None:
    """A few steps of every stage."""
    out = tmp_path / "out"
    sizes = {
        "PROBLEMS": "60",
        "TASKS": "40",
        "PAIRS": "24",
        "RL_TASKS": "40",
        "HELDOUT_TASKS": "12",
        "EPOCHS": "1",
        "SAMPLES": "1",
    }
    steps = {"REASONING_STEPS": "1", "GENERAL_STEPS": "1", "PROMPTS_PER_STEP": "4", "BUDGET": "200", "MAX_NEW_TOKENS": "16"}
    given = forked_python(OUT=str(out), SEED="3", **sizes, **steps)
    done = run(["bash", "examples/tiny/general.sh"], env=given)
    assert done.returncode == 0, done.stderr
    for name in ("before", "after-rl", "after"):
        assert json.loads((out / name / "general.json").read_text()).keys() == set(MEASURES)
    assert (out / "hf" / "config.json").is_file() and (out / "data" / "curated" / "report.html").is_file()
    rows = [json.loads(line) for line in (out / "general-rl" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 1 and "reward/mean/reward-model" in rows[0] and "reward/mean/math" in rows[0]


def test_the_jobs_of_the_study_build_on_each_other(tmp_path: Path) -> None:
    jobs = study_general.jobs(tmp_path, (1, 2), study_general.QUICK)
    check(jobs)
    named = {job.name: job for job in jobs}
    assert len(jobs) == 20
    replay, alone = (named[f"seed-2/{name}"] for name in ("replay", "alone"))
    assert set(replay.needs) == set(alone.needs) == {"seed-2/reasoning", "seed-2/reward"}
    differ = [one for one, other in zip(replay.command, alone.command, strict=True) if one != other]
    assert [Path(str(one)).name for one in differ] == ["replay", "general_replay.json"]


def test_recipes_stage_files_and_compositions_of_the_large_pipeline_are_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside raw files and a prompt file of one row each, as `curate.sh` lays them out."""
    recipes, curated = ROOT / "examples/ring_lite_2507/recipes", tmp_path / "curated"
    curated.mkdir()
    problem = {
        "id": "a",
        "domain": "math",
        "prompt": "Compute 1+1.",
        "answer": "2",
        "response": "<think>1</think>\\boxed{2}",
    }
    for name in ("math", "code", "science", "long_cot", "benchmarks"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "file.jsonl").write_text(json.dumps(problem) + "\n")
    for name in ("math", "code", "science", "long_cot"):
        shutil.copy(recipes / f"{name}.yaml", curated)
        curate(CurateConfig(recipe=curated / f"{name}.yaml", dry_run=True))
        assert "steps: read, clean" in capsys.readouterr().out
        (curated / f"{name}.jsonl").write_text(json.dumps({**problem, "id": f"{name}-1"}) + "\n")
    (curated / "logic.jsonl").write_text(json.dumps({**problem, "domain": "logic/exact", "answer": {"text": "2"}}) + "\n")
    rules = {"max_words": 9}
    general = {
        "chat/open": "", "instructions": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}, "qa/f1": "2",
        "chat/summary": {"rules": rules}, "tool-calls": {"calls": []},
    }  # fmt: skip
    rows = [{"id": domain, "domain": domain, "prompt": "?", "answer": answer} for domain, answer in general.items()]
    (tmp_path / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    compositions = read_compositions(recipes / "rewards.json")
    for name, sources in (("rl_math", 1), ("rl_code_science_logic", 3), ("rl_general", 9)):
        shutil.copy(recipes / f"{name}.yaml", tmp_path)
        schedule = read_schedule(tmp_path / f"{name}.yaml")
        assert len(schedule.sources) == sources
        check_answers([(row.id, row.domain, row.answer) for one in schedule.sources for row in one.records], compositions)
        if name == "rl_general":
            shares = schedule.stages[0].shares
            assert sum(shares[5:]) * 10 == sum(shares) * 3  # the replay of reasoning
