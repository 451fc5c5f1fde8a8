"""Stage files: what they say, and that what cannot be is refused in one line that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ring.data.files import write_prompts
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.schedule import PromptSchedule, read_schedule
from megatron_ring.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """math 30, mixed (code 20, science 10), each prompt with a solve rate of its place over the number of its file."""

    def rows(domain: str, count: int, of: int) -> list[PromptRecord]:
        return [PromptRecord(f"{domain}{i}", domain, "?", "1", {"solve_rate": i / of}) for i in range(count)]

    write_prompts(tmp_path / "math.jsonl", rows("math", 30, 30))
    write_prompts(tmp_path / "mixed.jsonl", rows("code", 20, 30) + rows("science", 10, 30))
    write_prompts(tmp_path / "bare.jsonl", [PromptRecord("b", "math", "?", "1")])
    (tmp_path / "sub").mkdir()
    write_prompts(tmp_path / "sub" / "math.jsonl", rows("math", 3, 3))
    return tmp_path


def stages(folder: Path, *described: dict[str, Any], suffix: str = ".yaml") -> PromptSchedule:
    path = folder / f"stages{suffix}"
    values = {"stages": list(described)}
    path.write_text(json.dumps(values) if suffix == ".json" else yaml.safe_dump(values))
    return read_schedule(path)


MATH, MIXED = {"file": "math.jsonl"}, {"file": "mixed.jsonl"}


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_two_stages(folder: Path, suffix: str) -> None:
    code, science = {**MIXED, "domain": "code", "weight": 0.8}, {**MIXED, "domain": "science", "weight": 0.2}
    schedule = stages(folder, {"steps": 600, "prompts": [MATH]}, {"prompts": [code, science]}, suffix=suffix)
    assert [source.name for source in schedule.sources] == ["math", "mixed-code", "mixed-science"]
    assert [len(source.records) for source in schedule.sources] == [30, 20, 10]
    assert [(s.first_step, s.sources, s.shares) for s in schedule.stages] == [(0, (0,), (1,)), (600, (1, 2), (4, 1))]
    assert [schedule.stage_at(step) for step in (0, 599, 600, 9999)] == [0, 0, 1, 1]
    assert schedule.domains == {"math", "code", "science"}


def test_a_naive_mix_is_the_files_as_one_and_a_source_of_two_stages_is_one(folder: Path) -> None:
    schedule = stages(folder, {"steps": 2, "prompts": [MATH, MIXED]}, {"prompts": [MATH]})
    assert len(schedule.sources) == 2 and schedule.stages[0].shares == (1, 1)
    assert schedule.stages[1].sources == (0,)
    science = {**MIXED, "domain": "science"}
    assert stages(folder, {"prompts": [MATH, science]}).stages[0].shares == (3, 1)


def test_one_prompt_file_is_a_schedule(folder: Path) -> None:
    schedule = read_schedule(folder / "mixed.jsonl")
    assert len(schedule.sources) == len(schedule.stages) == 1 and schedule.sources[0].domains == ["code", "science"]


def test_solve_rates_choose_prompts(folder: Path) -> None:
    kept = read_schedule(folder / "math.jsonl", 0.1, 0.5).sources[0].records
    assert [record.id for record in kept] == [f"math{i}" for i in range(3, 16)]
    assert len(read_schedule(folder / "math.jsonl", None, 0.5).sources[0].records) == 16
    assert len(read_schedule(folder / "math.jsonl", 0.5).sources[0].records) == 15
    with pytest.raises(UserError, match=r"none of 3 prompts has a solve rate from 0\.9 to 1\.0"):
        read_schedule(folder / "sub" / "math.jsonl", 0.9)
    with pytest.raises(UserError, match="prompt 'b' has no metadata"):
        read_schedule(folder / "bare.jsonl", 0.1)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ([{"steps": 5, "prompts": [MATH]}], "stage 1: the last stage runs to the end of the run"),
        ([{"prompts": [MATH]}, {"prompts": [MATH]}], "stage 1: 'steps' is None: give the number of steps"),
        ([{"steps": True, "prompts": [MATH]}, {"prompts": [MATH]}], "'steps' is True"),
        ([{"steps": 0, "prompts": [MATH]}, {"prompts": [MATH]}], "'steps' is 0"),
        ([{"prompts": []}], "'prompts' is not a list of objects"),
        ([{"prompts": "math.jsonl"}], "'prompts' is not a list of objects"),
        ([{"prompts": ["math.jsonl"]}], "'prompts' is not a list of objects"),
        ([{"prompts": [{"domain": "math"}]}], "an entry of 'prompts' has no 'file'"),
        ([{"prompts": [{"file": "gone.jsonl"}]}], "gone.jsonl: no such file"),
        ([{"prompts": [{**MATH, "wieght": 1}]}], "unknown key wieght: use by, domain, file, weight, weights, where"),
        ([{"prompts": [MATH], "until": 5}], "unknown key until: use prompts, steps"),
        ([{"prompts": [{**MATH, "weight": 0}]}], "'weight' is 0: make it a positive number"),
        ([{"prompts": [{**MATH, "weight": float("inf")}]}], "'weight' is inf"),
        ([{"prompts": [{**MATH, "weight": "1"}]}], "'weight' is '1'"),
        ([{"prompts": [{**MATH, "weight": 1}, MIXED]}], "some prompts have a weight, some have none"),
        ([{"prompts": [MATH, MATH]}], "math is named twice"),
        ([{"prompts": [{**MATH, "domain": "code"}]}], "has no prompts of domain 'code'"),
        ([{"prompts": [MATH, {"file": "sub/math.jsonl"}]}], "have the same name: rename one"),
        ([{"prompts": [MIXED, {**MIXED, "domain": "code"}]}], "the id 'code0' of domain code is in mixed and in mixed-code"),
        ([], "'stages' is not a list of stages"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, described: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError) as refused:
        stages(folder, *described)
    assert said in str(refused.value), refused.value


def test_files_that_are_no_stage_files(folder: Path) -> None:
    refused = {"a: [": "cannot be read as yaml", "[]": "expected an object", "stage: []": "unknown key stage"}
    for text, said in refused.items():
        (folder / "s.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_schedule(folder / "s.yaml")
    (folder / "s.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_schedule(folder / "s.json")
    with pytest.raises(UserError, match="No such file"):
        read_schedule(folder / "gone.yaml")
