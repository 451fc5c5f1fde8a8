"""A study's problems: tasks chosen by their solve rate, and a seed's draw from a pool."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_ring.data.files import read_prompts, read_sft, write_prompts, write_sft
from megatron_ring.data.records import Message, PromptRecord, SFTRecord
from megatron_ring.errors import UserError
from tools import choose_tasks, draw_worked_gym_data
from tools.choose_tasks import ChooseOptions, choose
from tools.draw_worked_gym_data import DrawOptions
from tools.study import check_pool
from tools.study_edition import Edition
from tools.study_stages import GPU, math_steps

RATES = {"gcd": (0.2, 0.6), "lcm": (0.0, 0.1), "leg_counting": (0.9, 0.7), "countdown": (0.25, 0.0)}


def prompt(task: str, number: int, **more: float) -> PromptRecord:
    return PromptRecord(f"{task}-{number}", "logic/exact", f"{task} {number}?", {"text": "1"}, {"task": task, **more})


def taught(task: str, number: int) -> SFTRecord:
    return SFTRecord((Message("user", f"{task} {number}"), Message("assistant", "1")), "logic/exact", task)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    for name, count in (("sft_train", 10), ("sft_validation", 3)):
        write_sft(folder / f"{name}.jsonl", [taught(task, number) for number in range(count) for task in RATES])
    write_prompts(folder / "heldout.jsonl", [prompt(task, number) for number in range(4) for task in RATES])
    rated = [prompt(task, number, solve_rate=rate) for task, rates in RATES.items() for number, rate in enumerate(rates)]
    write_prompts(folder / "rl_prompts.jsonl", rated)
    return folder


def test_tasks_between_the_bounds_or_those_nearest_to_their_middle() -> None:
    rates = {"a": 0.0, "b": 0.1, "c": 0.68, "d": 0.71, "e": 0.4}
    assert choose(rates, 0.1, 0.7, 2) == ["b", "c", "e"]
    assert choose(rates, 0.3, 0.5, 2) == ["c", "e"]
    assert choose(rates, 0.3, 0.5, 3) == ["b", "c", "e"]
    with pytest.raises(UserError, match="--least 6: the rated problems are of 5"):
        choose(rates, 0.1, 0.7, 6)


def test_a_chosen_pool_has_the_rows_of_its_tasks_with_their_rates(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen"
    choose_tasks.main(ChooseOptions(pool=pool, rated=pool / "rl_prompts.jsonl", out=out, least=2))
    assert {row.source for row in read_sft(out / "sft_train.jsonl")} == {"gcd", "countdown"}
    kept = {row.id: row.metadata["solve_rate"] for row in read_prompts(out / "rl_prompts.jsonl")}
    assert kept == {"gcd-0": 0.2, "gcd-1": 0.6, "countdown-0": 0.25, "countdown-1": 0.0}
    said = json.loads((out / "tasks.json").read_text())
    assert said["kept"] == ["countdown", "gcd"] and said["solve_rate"]["leg_counting"] == pytest.approx(0.8)
    assert said["rows"] == {"sft_train": 20, "sft_validation": 6, "rl_prompts": 4, "heldout": 8}


def test_what_cannot_be_chosen_from_is_named(pool: Path, tmp_path: Path) -> None:
    for record, said in (
        (prompt("gcd", 0), "no metadata.solve_rate from 0 to 1"),
        (prompt("gcd", 0, solve_rate=1.5), "no metadata.solve_rate from 0 to 1"),
        (PromptRecord("x", "math", "x?", "1", {"solve_rate": 0.5}), "no metadata.task"),
        (prompt("maze", 0, solve_rate=0.5), "sft_train.jsonl: no row of maze"),
    ):
        write_prompts(tmp_path / "rated.jsonl", [record])
        with pytest.raises(UserError, match=said):
            choose_tasks.main(ChooseOptions(pool=pool, rated=tmp_path / "rated.jsonl", out=tmp_path / "out", least=1))
    with pytest.raises(UserError, match=r"--low 0\.7 and --high 0\.1"):
        ChooseOptions(pool=pool, rated=pool, out=tmp_path, low=0.7, high=0.1)


def test_a_pool_is_not_written_over(pool: Path) -> None:
    same = pool / ".." / pool.name
    with pytest.raises(UserError, match=r"--out .*: is --pool, whose other rows would be lost"):
        ChooseOptions(pool=pool, rated=pool, out=same)
    with pytest.raises(UserError, match=r"--out .*: is --pool, whose other rows would be lost"):
        DrawOptions(pool=pool, out=same)


def test_a_seed_draws_its_own_rows_and_splits_stay_apart(pool: Path, tmp_path: Path) -> None:
    asked = {"pool": pool, "train": 12, "validation": 100, "rl": 6, "heldout": 5, "repeated": 4}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        options = DrawOptions(out=tmp_path / name, seed=seed, parts=("few=gcd,maze",), **asked)  # type: ignore[arg-type]
        draw_worked_gym_data.main(options)
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    train, other = (read_sft(tmp_path / name / "sft_train.jsonl") for name in ("one", "two"))
    texts = [row.messages[0].content for row in train]
    assert len(set(texts)) == 12 and texts != [row.messages[0].content for row in other]
    assert [row.messages for row in read_sft(tmp_path / "one/sft_repeated.jsonl")] == [row.messages for row in train[:4]]
    assert len(read_sft(tmp_path / "one/sft_validation.jsonl")) == 12  # all there are
    drawn = read_prompts(tmp_path / "one/rl_prompts.jsonl")
    assert len(drawn) == 6 and all("solve_rate" in row.metadata for row in drawn)
    part = [row.id for row in read_prompts(tmp_path / "one/rl_prompts_few.jsonl")]
    assert part == [row.id for row in drawn if row.metadata["task"] == "gcd"] and part


def test_a_study_wants_rates_in_its_pool(pool: Path, tmp_path: Path) -> None:
    check_pool(pool)
    write_prompts(tmp_path / "bare/rl_prompts.jsonl", [prompt("gcd", 0)])
    with pytest.raises(UserError, match=r"--pool .*bare: prompts without a solve rate"):
        check_pool(tmp_path / "bare")
    with pytest.raises(UserError, match=r"nowhere/rl_prompts\.jsonl"):
        check_pool(tmp_path / "nowhere")


def test_refusals_of_a_draw(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--parts a=maze: no RL prompt of these tasks"):
        draw_worked_gym_data.main(DrawOptions(pool=pool, out=tmp_path / "x", parts=("a=maze",)))
    for flags, said in (({"heldout": 0}, "--heldout is 0"), ({"parts": ("a",)}, "--parts a: write NAME=TASK"),
                        ({"repeated": 9, "train": 8}, "--repeated 9: give 0 to --train")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            DrawOptions(pool=pool, out=tmp_path, **flags)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"nowhere/sft_train.jsonl"):
        draw_worked_gym_data.main(DrawOptions(pool=tmp_path / "nowhere", out=tmp_path / "y"))


def test_the_first_stage_has_the_share_of_its_problems(pool: Path, tmp_path: Path) -> None:
    """Of those that RL trains on: gcd twice and lcm once are math, legs twice and the countdown once are not."""
    assert Edition(tmp_path, pool).math_share == pytest.approx(3 / 6)
    legs = [prompt("leg_counting", number, solve_rate=0.1 * number) for number in range(4)]
    write_prompts(pool / "rl_prompts.jsonl", [prompt("gcd", 0, solve_rate=0.5), prompt("lcm", 0, solve_rate=0.95), *legs])
    assert Edition(tmp_path, pool).math_share == pytest.approx(1 / 4)
    write_prompts(pool / "rl_prompts.jsonl", [prompt("lcm", 0, solve_rate=0.5), prompt("countdown", 0, solve_rate=0.0)])
    with pytest.raises(UserError, match="all of one stage"):
        math_steps(replace(GPU, edition=Edition(tmp_path, pool)))
    assert Edition(tmp_path, tmp_path / "missing").math_share == Edition(tmp_path).math_share == 0.5
