"""The page of two stages against a mix: of one folder and of several that machines have filled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_ring.analysis.read_run import read_metrics
from megatron_ring.analysis.study_page import write_page
from megatron_ring.analysis.study_stages import JOBS, MIX, STAGES, page
from megatron_ring.errors import UserError
from tests.analysis.plausible import Record, write_evaluation, write_jsonl, write_rl
from tests.conftest import ROOT
from tools.study import Flags, main, named

SEEDS = (1, 2, 3)
TASKS = ("gcd", "leg_counting", "zebra")  # gcd is of the first stage, and so is zebra


def finish(root: Path) -> None:
    for job in JOBS:
        (root / job).mkdir(parents=True, exist_ok=True)
        (root / job / "finished.json").write_text(json.dumps({"command": "x", "seconds": 60.0, "beside": 4}))


def write_runs(folder: Path, seed: int, steps: tuple[int, int] = (12, 8), config: str = "") -> Path:
    root = folder / f"seed-{seed}"
    for index, (name, count) in enumerate((("math", steps[0]), ("applied", steps[1]), ("mix", sum(steps)))):
        write_rl(root / name, steps=count, seed=10 * seed + index)
        (root / name / "config.yaml").write_text(config)
    return root


def write_stages(folder: Path, seed: int) -> None:
    """What a machine leaves of one seed of the study in small: problems of two domains."""
    root = write_runs(folder, seed)
    for name, rate in (("before", 0.2), ("math-after", 0.4), ("applied-after", 0.6), ("mix-after", 0.5)):
        write_evaluation(root / name, rate, problems=30, seed=seed)
    problems = [{"id": f"q{index}", "metadata": {"witness": "7"}} for index in range(30)]
    for file in ("heldout", "rl_prompts_math"):
        write_jsonl(root / "data" / f"{file}.jsonl", problems)
    finish(root)


def write_gym(folder: Path, seed: int, problems: int = 10, steps: tuple[int, int] = (6, 6), prompts: int = 3) -> None:
    """The same of the study on a GPU: one domain, and three tasks of 10 problems. Of those, this many are solved."""
    root = write_runs(folder, seed, steps, f"prompts_per_step: {prompts}\nbudget:\n  tokens: 1000\n")
    solved = {"before": (1, 2, 1), "math-after": (6, 2, 3), "applied-after": (6, 5, seed), "mix-after": (4, 4, 3)}
    ids = {task: [f"reasoning-gym-{task}-{index}" for index in range(problems)] for task in TASKS}
    for name, counts in solved.items():
        write_gym_evaluation(root / name, dict(zip(TASKS, counts, strict=True)), ids)
    rows = {task: [{"id": id, "metadata": {"task": task}} for id in ids[task]] for task in TASKS}
    write_jsonl(root / "data/heldout.jsonl", [row for task in TASKS for row in rows[task]])
    write_jsonl(root / "data/rl_prompts_math.jsonl", [{"id": "other", "metadata": {"task": "zebra"}}, rows["gcd"][0]])
    finish(root)


def write_gym_evaluation(place: Path, solved: Mapping[str, int], ids: Mapping[str, list[str]]) -> None:
    """Two answers to each problem: the first so many problems of a task are solved by both."""
    samples: list[Record] = [
        {"id": id, "domain": "logic/exact", "prompt": "?", "response": "!", "reward": float(index < solved[task])}
        for task in TASKS
        for index, id in enumerate(ids[task])
        for _ in range(2)
    ]
    rate = sum(sample["reward"] for sample in samples) / len(samples)
    every = {"problems": len(samples) // 2, "pass_at_1": rate}
    write_jsonl(place / "samples.jsonl", samples)
    result = {"checkpoint": "c", **every, "samples_per_problem": 2, "by_domain": {"logic/exact": every}}
    (place / "result.json").write_text(json.dumps(result))


def test_the_study_in_small_goes_by_domain(tmp_path: Path) -> None:
    for seed in SEEDS:
        write_stages(tmp_path, seed)
    tables, _, numbers = page([tmp_path], SEEDS)
    assert numbers["steps of the first stage"] == 12
    assert numbers["compute"]["steps"]["settings"][STAGES]["values"] == [20.0, 20.0, 20.0]
    assert numbers["compute"]["trained tokens"]["differences"][f"{STAGES} - {MIX}"]["mean"] == 0
    after = numbers["pass@1"]["after, math"]["settings"][STAGES]["values"]
    results = [json.loads((tmp_path / f"seed-{seed}/applied-after/result.json").read_text()) for seed in SEEDS]
    assert after == [result["by_domain"]["math"]["pass_at_1"] for result in results]
    assert list(numbers["pass@1"]) == [f"{at}, {kind}" for at in ("before", "after math", "after")
                                       for kind in ("all", "math", "science")]  # fmt: skip
    assert "| after math, all |" in tables["pass@1"] and "| all | 24 | 24.0 | 6.0 |" in tables["cost"]


def test_problems_of_one_domain_go_by_task_those_of_the_first_stage_first(tmp_path: Path) -> None:
    for seed in SEEDS:
        write_gym(tmp_path, seed)
    tables, figures, numbers = page([tmp_path])
    rates = numbers["pass@1"]
    assert list(rates)[:4] == ["before, all", "before, gcd", "before, zebra", "before, leg_counting"]
    assert rates["after math, gcd"]["settings"] == {STAGES: {"values": [0.6, 0.6, 0.6], "mean": pytest.approx(0.6), "sd": 0}}
    assert rates["after, zebra"]["settings"][STAGES]["values"] == pytest.approx([0.1, 0.2, 0.3])
    claims = {claim["claim"]: claim for claim in numbers["claims"]}
    assert claims["Two stages beat the naive mix, gcd"]["verdict"] == "reproduced"  # 0.6 − 0.4 with each seed
    zebra, whole = (claims[f"Two stages beat the naive mix, {kind}"] for kind in ("zebra", "all"))
    assert zebra["difference"] == pytest.approx(-0.1) and zebra["verdict"] == "undecided"  # −0.2, −0.1, 0
    assert whole["difference"] == pytest.approx((0.2 + 0.1 - 0.1) / 3)
    learns = claims["RL on all problems at once learns (what this study needs)"]
    assert learns["difference"] == pytest.approx(11 / 30 - 4 / 30) and learns["verdict"] == "reproduced"
    assert tables["claims"].count("Two stages beat the naive mix") == 4
    # The curves of the first stage know nothing of the second's steps.
    reward = next(axes for axes in figures["study-stages"].axes if axes.get_title(loc="left").startswith("Reward"))
    drawn = reward.get_lines()[0].get_ydata()
    last = [read_metrics(tmp_path / f"seed-{seed}/math/metrics.jsonl")[-3:] for seed in SEEDS]
    assert drawn[5] == pytest.approx(sum(row["reward/mean"] for rows in last for row in rows) / 9)


def test_stages_from_several_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_gym(first, 1)
    write_gym(first, 2)
    write_gym(second, 3)
    (first / "seed-2/applied-after/finished.json").unlink()
    numbers = page([second, first])[2]
    assert numbers["seeds"] == [1, 3]
    assert numbers["pass@1"]["after, zebra"]["settings"][STAGES]["values"] == pytest.approx([0.1, 0.3])
    missing = r"no seed 2 with all of data, before, math, math-after, applied, applied-after, mix, mix-after; run what"
    with pytest.raises(UserError, match=missing):
        main(Flags(name="stages", out=first, gather=(second,)))
    docs = tmp_path / "docs"
    main(Flags(name="stages", out=first, gather=(second,), partial=True, docs=docs, page="study-stages-gpu"))
    text = (docs / "study-stages-gpu.md").read_text()
    assert "Settings two stages, naive mix; seeds 1, 3. Left out, as runs of theirs are missing: 2." in text
    assert sorted(path.name for path in (docs / "figures").iterdir()) == [
        "study-stages-gpu-rates.png",
        "study-stages-gpu.png",
    ]
    # Another machine has run what was missing of seed 2.
    write_gym(tmp_path / "c", 2)
    for job in JOBS[:-3]:
        shutil.rmtree(tmp_path / "c/seed-2" / job)
    assert page([first, second, tmp_path / "c"], SEEDS)[2]["seeds"] == [1, 2, 3]
    with pytest.raises(UserError, match="no seed at all"):
        page([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"steps": (6, 5)}, r"seed-2/applied: 11 steps, evaluated at \[0, 11\]; .*seed-1/applied has 12, at"),
        ({"steps": (7, 5)}, r"seed-2/math: 7 steps, .*; .*seed-1/math has 6 steps, "),
        (
            {"prompts": 2},
            r"seed-2/math: 6 steps, prompts_per_step 2, budget.tokens 1000; .*/math has 6 steps, prompts_per_step 3",
        ),
        ({"problems": 9}, r"seed-2/before: 27 problems, answers to each 2; .*seed-1/before has 30 problems"),
    ],
)
def test_stages_of_other_sizes_are_not_gathered(tmp_path: Path, other: Mapping[str, int], said: str) -> None:
    write_gym(tmp_path / "a", 1)
    write_gym(tmp_path / "b", 2, **other)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=said) as raised:
        page([tmp_path / "a", tmp_path / "b"])
    assert str(raised.value).endswith("gather runs of one study") and "\n" not in str(raised.value)


def test_written_pages_have_a_place_for_every_table(tmp_path: Path) -> None:
    for seed in SEEDS:
        write_stages(tmp_path / "small", seed)
        write_gym(tmp_path / "gym", seed)
    for name, folder in (("study-stages", "small"), ("study-stages-gpu", "gym")):
        shutil.copy(ROOT / f"docs/{name}.md", tmp_path)
        tables, figures, numbers = page([tmp_path / folder])
        write_page(tmp_path, *named(name, "stages", tables, figures), numbers)
        text = (tmp_path / f"{name}.md").read_text()
        assert all(f"<!-- table {table} -->\n{content}<!-- end -->" in text for table, content in tables.items())
        assert all(f"](figures/{path.name})" in text for path in (tmp_path / "figures").glob(f"{name}*"))


def test_runs_of_a_seed_that_began_elsewhere_are_refused(tmp_path: Path) -> None:
    """One machine has the stages of seed 1, another, from a pilot of its own, the mix."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        write_gym(folder, 1)
        result = folder / "seed-1" / "before" / "result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"checkpoint_fingerprint": folder.name}))
    shutil.rmtree(first / "seed-1" / "mix")
    with pytest.raises(UserError, match=r"second/seed-1: its runs began at another checkpoint than those of .*first/seed-1"):
        page([first, second])
    shutil.rmtree(second / "seed-1" / "before")  # what has not evaluated its start is taken as it is
    assert "seeds 1." in page([first, second])[0]["part"]
