"""Parts of files chosen by metadata, in their own shares."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.prompts import PromptStream
from megatron_ring.data.schedule import PromptSchedule, read_schedule
from megatron_ring.errors import UserError

FILE = {"file": "m.jsonl"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    subjects = ("algebra", "geometry", "logic")
    rows = [
        {"id": f"p{n}", "domain": "math", "prompt": f"{n}?", "answer": "1",
         "metadata": {"subject": subjects[n % 3], "level": n % 5, "difficulty": n / 60, "deep": {"a": n % 2}} if n else {}}
        for n in range(60)
    ]  # fmt: skip
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def schedule(folder: Path, *stages: list[dict[str, Any]]) -> PromptSchedule:
    described = [{"prompts": prompts, "steps": 10} for prompts in stages]
    described[-1].pop("steps")
    (folder / "s.yaml").write_text(json.dumps({"stages": described}))
    return read_schedule(folder / "s.yaml")


CONDITIONS: list[tuple[dict[str, Any], Any]] = [
    ({"subject": "geometry"}, lambda n: n % 3 == 1),
    ({"level": [3, "4"]}, lambda n: n % 5 in (3, 4)),
    ({"level": 3.0}, lambda n: n % 5 == 3),
    ({"difficulty": {"min": 0.5}}, lambda n: n >= 30),
    (
        {"difficulty": {"min": 0.25, "max": 0.5}, "subject": {"not": ["logic", "algebra"]}},
        lambda n: 15 <= n <= 30 and n % 3 == 1,
    ),
    ({"difficulty": {"min": 0.25, "below": 0.5}}, lambda n: 15 <= n < 30),
    ({"deep.a": 1}, lambda n: n % 2 == 1),
]


@pytest.mark.parametrize(("where", "holds"), CONDITIONS)
def test_conditions(where: dict[str, Any], holds: Any, folder: Path) -> None:
    [source] = schedule(folder, [{**FILE, "where": where}]).sources
    assert [record.id for record in source.records] == [f"p{n}" for n in range(1, 60) if holds(n)]


def test_shares_of_values(folder: Path) -> None:
    found = schedule(folder, [{**FILE, "by": "subject", "weights": {"geometry": 3, "other": 1}}])
    assert [source.name for source in found.sources] == ["m-subject=geometry", "m-subject=other"]
    assert len(found.sources[1].records) == 40  # the one without a subject among them
    stream = PromptStream(found, seed=1)
    drawn = Counter(taken.record.metadata.get("subject") for taken in stream.take(400))
    assert drawn["geometry"] == 300
    figures = stream.figures(0)
    assert figures["data/share/m-subject=geometry"] == 0.75 and figures["data/share/m-subject=other"] == 0.25


def test_shares_of_bins(folder: Path) -> None:
    weights = {"0..0.25": 1, "0.25..0.5": 2, "0.5..0.75": 1, "other": 1}
    found = schedule(folder, [{**FILE, "by": "difficulty", "weights": weights}])
    held = [{int(record.id[1:]) for record in source.records} for source in found.sources]
    assert held == [set(range(1, 15)), set(range(15, 30)), set(range(30, 46)), {0, *range(46, 60)}]
    assert [source.name for source in found.sources][1:3] == ["m-difficulty=>=0.25,<0.5", "m-difficulty=>=0.5,<=0.75"]
    stream = PromptStream(found, seed=1)
    drawn = Counter(taken.record.metadata.get("difficulty", 1) // 0.25 for taken in stream.take(100))
    assert (drawn[0], drawn[1]) == (20, 40)


def test_a_curriculum_may_overlap_over_stages(folder: Path) -> None:
    easy, hard = ({**FILE, "where": {"difficulty": bounds}} for bounds in ({"max": 0.5}, {"min": 0.3}))
    found = schedule(folder, [easy], [hard])
    assert len(found.sources) == 2 and len(found.stages) == 2
    assert found.sources[0].records[-1].id == "p30" and found.sources[1].records[0].id == "p18"


def test_weights_multiply(folder: Path) -> None:
    (folder / "n.jsonl").write_text(json.dumps({"id": "x", "domain": "math", "prompt": "?", "answer": "1"}) + "\n")
    entries = [
        {**FILE, "weight": 2, "by": "subject", "weights": {"geometry": 1, "logic": 3}},
        {"file": "n.jsonl", "weight": 2},
    ]
    assert schedule(folder, entries).stages[0].shares == (1, 3, 4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"where": {"subjekt": "algebra"}}, "has no prompt with metadata.subjekt"),
    ({"where": {"subject": "topology"}}, "has no prompts where subject=topology"),
    ({"where": {"level": {"least": 3}}}, "'where': level: use a value, a list of values, or min, max, below, not"),
    ({"where": {"level": {"min": "3"}}}, "min is '3': make it a number"),
    ({"where": {"level": {"min": 3, "max": 2}}}, "min 3 is above max 2"),
    ({"where": {"level": {"min": 3, "below": 3}}}, "min 3 is not below 3"),
    ({"by": "difficulty", "weights": {"0..0.5": 1, "0.4..1": 1}}, "two bins of difficulty overlap"),
    ({"by": "difficulty", "weights": {"1..0.5": 1}}, "1..0.5 is empty"),
    ({"where": {"level": []}}, "give a value, or a list of values"),
    ({"where": "algebra"}, "'where' is not an object"),
    ({"by": "subject"}, "give both"),
    ({"by": "subject", "weights": {"algebra": 0}}, "algebra is 0: make it a positive number"),
]


@pytest.mark.parametrize(("entry", "said"), REFUSED)
def test_refused(entry: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        schedule(folder, [{**FILE, **entry}])
    assert said in str(refused.value) and "stage 1" in str(refused.value)


def test_parts_of_one_stage_exclude_each_other(folder: Path) -> None:
    with pytest.raises(UserError, match="let the parts of a file exclude each other"):
        schedule(folder, [{**FILE, "where": {"level": 3}}, {**FILE, "where": {"subject": "algebra"}}])
