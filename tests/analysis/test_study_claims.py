"""Claims judged by their intervals, costs, parts of a study, and C3PO's page from several folders."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_ring.analysis.spread import Difference, paired_seeds
from megatron_ring.analysis.statistics import Interval
from megatron_ring.analysis.study import best_by_others
from megatron_ring.analysis.study_c3po import steady_page
from megatron_ring.analysis.study_claims import Claim, claims_json, claims_table
from megatron_ring.analysis.study_cost import JobTime, cost_table, job_time
from megatron_ring.analysis.study_epochs import page
from megatron_ring.analysis.study_page import write_page
from megatron_ring.analysis.study_starts import whole_part
from megatron_ring.errors import UserError
from tests.analysis.plausible import rl_record, write_evaluation, write_jsonl
from tests.analysis.test_study_epochs import start, starts, write_all
from tests.conftest import ROOT
from tools.study import Flags, main, named, tasks_table


def found(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, Interval(low, high), 3)


@pytest.mark.parametrize(
    ("difference", "bound", "verdict"),
    [
        (found(0.01, 0.2), False, "reproduced"),
        (found(-0.2, -0.01), False, "not reproduced"),
        (found(-0.1, 0.2), False, "undecided"),
        (found(0.0, 0.0), False, "undecided"),
        (found(0.0, 0.0), True, "not reproduced"),  # a regret of 0 for every seed
        (Difference(0.3, None, 1), False, "undecided"),  # one seed tells nothing
        (None, False, "undecided"),
    ],
)
def test_a_verdict_is_what_the_interval_says(difference: Difference | None, bound: bool, verdict: str) -> None:
    claim = Claim("more is more", "entropy (nats)", difference, bound)
    assert claim.verdict == verdict
    line = claims_table([claim]).splitlines()[2]
    assert line.startswith("| more is more | entropy (nats) | ") and line.endswith(f" | {verdict} |")
    assert ("not measured" in line) == (difference is None)
    assert claims_json([claim])[0]["verdict"] == verdict


def test_claims_of_the_study_of_epochs_by_hand(tmp_path: Path) -> None:
    tables, _, numbers = page([write_all(tmp_path, starts())])
    by_text = {claim["claim"]: claim for claim in numbers["claims"]}
    entropy = by_text["more epochs lower the entropy"]
    wanted = paired_seeds([0.2, 0.15, 0.25], [0.9, 0.8, 0.85])  # after 4 epochs and after 1
    assert wanted.interval is not None and entropy["verdict"] == "reproduced"
    assert entropy["interval_95"] == pytest.approx([wanted.interval.low, wanted.interval.high])
    band = by_text["entropy in 0.3–0.5 chooses a good start"]  # blind 0.10, 0.0867, 0.1267; the band 0, 0.03, 0
    assert band["difference"] == pytest.approx((0.1 + 0.26 / 3 - 0.03 + 0.38 / 3) / 3) and band["verdict"] == "reproduced"
    assert by_text["a moderate number of epochs is better than the fewest"]["verdict"] == "reproduced"
    assert by_text["a moderate number of epochs is better than the most"]["verdict"] == "undecided"
    assert by_text["more epochs make RL collapse earlier"]["difference"] is None
    gain = by_text["RL gains 10 points from the best start; an aim of ours"]
    assert gain["difference"] == pytest.approx((0.30 + 0.10 + 0.26) / 3 - 0.10)
    assert gain["measured"] == "gain, 2 epochs (chosen by the other seeds) − 0.10 (pass@1)"
    assert "9 starts: epochs 1, 2, 4; seeds 1, 2, 3. 20 steps of RL. 600 held-out problems." in tables["part"]


def test_the_best_number_of_epochs_is_judged_on_the_seed_that_did_not_choose_it(tmp_path: Path) -> None:
    assert best_by_others({"1": (0.5, 0.1), "2": (0.1, 0.4)}) == ["2", "1"]
    assert best_by_others({"1": (0.5, 0.5), "2": (0.5, 0.5)}) == ["1", "1"] and best_by_others({"1": (0.5,)}) is None
    # Seed 1 alone makes 4 epochs best in the mean of all; the others choose 2 for it, and it makes them choose 4.
    last = {(1, 4): 0.95, (2, 4): 0.50, (3, 4): 0.50, (1, 2): 0.60, (2, 2): 0.55, (3, 2): 0.56}
    found = [replace(s, evaluations=[[20, last.get((s.seed, s.epochs), s.last)]]) for s in starts()]
    numbers = page([write_all(tmp_path / "all", found)])[2]
    claims = {claim["claim"]: claim for claim in numbers["claims"]}
    gain = claims["RL gains 10 points from the best start; an aim of ours"]
    assert numbers["best start"] == 4 and gain["measured"].startswith("gain, 2, 4 epochs (chosen by the other seeds)")
    assert gain["difference"] == pytest.approx(((0.60 - 0.30) + (0.50 - 0.40) + (0.50 - 0.40)) / 3 - 0.10)
    # One seed has no others: such a claim is not measured.
    tables, _, numbers = page([write_all(tmp_path / "one", starts((1,)))])
    assert tables["sweet spot"].startswith("One seed does not tell whether there is a sweet spot. The best mean is")
    claims = {claim["claim"]: claim for claim in numbers["claims"]}
    assert claims["RL gains 10 points from the best start; an aim of ours"]["difference"] is None
    assert claims["a moderate number of epochs is better than the most"]["difference"] is None


def test_a_part_without_holes_is_the_largest_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    all_but = [each for each in starts() if (each.seed, each.epochs) not in ((3, 4), (3, 2))]
    assert [(s.seed, s.epochs) for s in whole_part(all_but)] == [(s, e) for s in (1, 2) for e in (1, 2, 4)]
    even = [start(seed, epochs) for seed, epochs in ((1, 1), (2, 1), (1, 2))]
    assert [(s.seed, s.epochs) for s in whole_part(even)] == [(1, 1), (2, 1)]  # rather seeds than epochs
    folder = write_all(tmp_path, all_but)
    with pytest.raises(UserError, match="seed 3: no result of 2, 4"):
        page([folder])
    tables, _, numbers = page([folder], partial=True)
    assert numbers["seeds"] == [1, 2] and numbers["epochs"] == [1, 2, 4]
    assert "Left out, as other seeds lack it: seed 3 epochs 1." in tables["part"]


def test_costs_are_added_up_and_old_marks_have_none(tmp_path: Path) -> None:
    table = cost_table({"sft": [JobTime(60, 2), JobTime(120, 2)], "rl": [JobTime(600, 4), None]}).splitlines()
    assert table[2:5] == ["| sft | 2 | 3.0 | 1.5 |", "| rl | 1 | 10.0 | 2.5 |", "| all | 3 | 13.0 | 4.0 |"]
    assert table[-1].startswith("Up to 2 or 4 processes ran side by side") and table[-1].endswith(
        "Of 1 job(s) no time was recorded."
    )
    (tmp_path / "finished.json").write_text('{"command": "x"}')
    assert job_time(tmp_path) is None and job_time(tmp_path / "nowhere") is None
    for broken in ("[]", "{"):
        (tmp_path / "finished.json").write_text(broken)
        with pytest.raises(UserError, match="not the mark of a finished job"):
            job_time(tmp_path)


def write_part(folder: Path, seed: int, settings: tuple[str, ...], steps: int = 12) -> None:
    """What a machine leaves of one seed: C3PO trains 1,000 tokens in each step, GRPO 800 and 1,600 in turn."""
    for name in ("before-chosen", *settings):
        place = folder / f"seed-{seed}" / name
        if name == "before-chosen":
            write_evaluation(place, 0.3, problems=20)
        else:
            records = [rl_record(step, random.Random(f"{seed}/{name}/{step}")) for step in range(1, steps + 1)]
            for record in records:
                record["tokens/trained"] = 1000 if name == "c3po" else 800 * (1 + record["step"] % 2)
            records[-1]["evaluation/pass_at_1"] = 0.5 + seed / 100 + (0.1 if name == "c3po" else 0)
            write_jsonl(place / "metrics.jsonl", records)
        (place / "finished.json").write_text(json.dumps({"command": "x", "seconds": 120.0, "beside": 4}))


def test_c3po_against_grpo_from_several_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_part(first, 1, ("c3po", "grpo"))
    write_part(first, 2, ("c3po",))
    write_part(second, 3, ("c3po", "grpo"))
    tables, figures, numbers = steady_page([first, second])
    assert numbers["seeds"] == [1, 3] and "Left out, as runs of theirs are missing: 2." in tables["part"]
    claims = {claim["claim"]: claim for claim in numbers["claims"]}
    swings = claims["C3PO trains as many tokens in every step, GRPO does not"]
    assert swings["difference"] == pytest.approx(1 / 3) and swings["verdict"] == "reproduced"
    assert claims["C3PO solves more held-out problems"]["difference"] == pytest.approx(0.1)
    assert "| all | 6 | 12.0 | 3.0 |" in tables["cost"]
    with pytest.raises(UserError, match=r"no seed 2 with all of before-chosen, c3po, grpo"):
        steady_page([first, second], (1, 2), ("c3po", "grpo"))
    with pytest.raises(UserError, match="no seed at all"):
        steady_page([tmp_path / "c"])
    write_page(tmp_path / "docs", *named("study-c3po-gpu", "c3po", tables, figures), numbers)
    text = (tmp_path / "docs/study-c3po-gpu.md").read_text()
    assert "](figures/study-c3po-gpu.png)" in text and (tmp_path / "docs/figures/study-c3po-gpu.png").is_file()


def test_the_frames_of_the_pages_have_a_place_for_every_table(tmp_path: Path) -> None:
    """And the rates of the tasks go on a page."""
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "examples/study/pages", docs)
    for seed in (1, 2):
        write_part(tmp_path / "part", seed, ("c3po", "grpo"))
    (tmp_path / "tasks.json").write_text(json.dumps({"solve_rate": {"gcd": 0.25, "lcm": 0.9}, "kept": ["gcd"]}))
    pairs = {
        "epochs": (write_all(tmp_path, starts()), {"tasks": tmp_path / "tasks.json"}),
        "c3po": (tmp_path / "part", {"settings": ("c3po", "grpo"), "partial": True}),
    }
    for name, (out, more) in pairs.items():
        main(Flags(name, out=out, gather=(), docs=docs, page=f"study-{name}-gpu", **more))  # type: ignore[arg-type]
    for page_text in ((docs / f"study-{name}-gpu.md").read_text() for name in ("epochs", "c3po")):
        assert re.search(r"<!-- table [a-z 1@]+ -->\n<!-- end -->", page_text) is None
    text = (docs / "study-epochs-gpu.md").read_text()
    assert "| gcd | 0.250 | yes |\n| lcm | 0.900 | no |\n" in text
    for broken in ("[]", '{"solve_rate": {"gcd": "x"}, "kept": []}', "{"):
        (tmp_path / "tasks.json").write_text(broken)
        with pytest.raises(UserError, match=r"--tasks .*tasks.json: not the tasks.json of tools/choose_tasks.py"):
            tasks_table(tmp_path / "tasks.json")


def test_a_page_by_another_name_has_figures_of_its_own(tmp_path: Path) -> None:
    tables, figures, numbers = page([write_all(tmp_path, starts())])
    write_page(tmp_path / "docs", *named("study-epochs-gpu", "epochs", tables, figures), numbers)
    text = (tmp_path / "docs/study-epochs-gpu.md").read_text()
    drawn = sorted(path.stem for path in (tmp_path / "docs/figures").iterdir())
    assert drawn == [f"study-epochs-gpu-{name}" for name in ("entropy", "ratio", "rl", "tokens")]
    assert all(text.count(f"](figures/{name}.png)") == 1 for name in drawn) and "figures/study-epochs-rl" not in text
