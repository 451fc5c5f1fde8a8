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
from megatron_ring.analysis.study_fp8 import page as fp8_page
from megatron_ring.analysis.study_page import write_page
from megatron_ring.analysis.study_starts import whole_part
from megatron_ring.errors import UserError
from tests.analysis.plausible import rl_record, write_evaluation, write_jsonl
from tests.analysis.test_study_epochs import start, starts, write_all
from tests.analysis.test_study_stages import write_gym
from tests.conftest import ROOT
from tools.study import Flags, main, named, tasks_table

NARROW = ("fp8", "fp8-recomputed", "fp8-icepop")


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
    """What a machine leaves of one seed: C3PO trains 1,000 tokens in each step, GRPO 800 and 1,600 in turn. With FP8 the
    sampler is further from the trainer, and what was learnt is a tenth less than with C3PO."""
    for name in ("before-chosen", *settings):
        place = folder / f"seed-{seed}" / name
        if name == "before-chosen":
            write_evaluation(place, 0.3, problems=20)
        else:
            records = [rl_record(step, random.Random(f"{seed}/{name}/{step}")) for step in range(1, steps + 1)]
            for record in records:
                record["tokens/trained"] = 1000 if name != "grpo" else 800 * (1 + record["step"] % 2)
                record |= {"time/first_pass": 0.5, "mismatch/masked_fraction": 0.01 if name == "fp8-icepop" else 0.0}
                record["mismatch/logprob_abs_mean"] = (0.006 if "fp8" in name else 0.002) + seed / 10_000
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


def test_fp8_from_several_folders(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for seed in (1, 2, 3):
        write_part(first, seed, ("c3po",))
        write_part(second, seed, NARROW if seed < 3 else NARROW[:1])
    tables, figures, numbers = fp8_page([first, second])
    assert tables["part"] == (
        "Settings bf16, fp8, fp8-recomputed, fp8-icepop; seeds 1, 2. Left out, as runs of theirs are missing: 3.\n"
    )
    claims = {claim["claim"]: claim for claim in numbers["claims"]}
    apart = claims["FP8 takes the sampler further from the trainer"]
    assert apart["difference"] == pytest.approx(4.0) and apart["verdict"] == "reproduced"
    learnt = claims["RL without FP8 learns (what this study needs)"]
    before = json.loads((first / "seed-1/before-chosen/result.json").read_text())["pass_at_1"]
    assert learnt["difference"] == pytest.approx(0.615 - before) and learnt["verdict"] == "reproduced"
    # A tenth lost with each seed: the margin of 3 points leaves 7.
    lost = claims["FP8 with IcePop loses less than 3 points of held-out pass@1"]
    assert lost["difference"] == pytest.approx(-0.07) and lost["verdict"] == "not reproduced"
    assert lost["measured"] == "held-out pass@1 after, fp8-icepop − bf16 + 0.03"
    assert "| masked by the correction (of 1,000 tokens) | 0 | 0 | 0 | 10 |" in tables["mismatch"]
    assert "| c3po | 2 | 4.0 | 1.0 |" in tables["cost"] and "bf16" not in tables["cost"]
    held_out = next(axes for axes in figures["study-fp8"].axes if axes.get_title(loc="left") == "Held-out pass@1")
    assert held_out.get_lines()[0].get_xdata().tolist() == [0, 12]
    top = max(y for x, y in held_out.collections[0].get_paths()[0].vertices.tolist() if x == 12)
    assert top == pytest.approx(0.615 + 12.7062 * 0.005)  # bf16: 0.61 and 0.62, Student's interval
    # Without IcePop all three seeds can be compared.
    tables, _, numbers = fp8_page([first, second], (1, 2, 3), ("bf16", "fp8"))
    assert numbers["seeds"] == [1, 2, 3] and "IcePop" not in tables["claims"]
    with pytest.raises(UserError, match=r"no seed 3 with all of before-chosen, c3po, fp8, fp8-recomputed, fp8-icepop; run"):
        fp8_page([first, second], (1, 2, 3))


def test_runs_of_other_sizes_are_not_gathered(tmp_path: Path) -> None:
    write_part(tmp_path, 1, ("c3po", "grpo"))
    write_part(tmp_path, 2, ("c3po", "grpo"), steps=11)
    with pytest.raises(UserError, match=r"seed-2/c3po: 11 steps, evaluated at \[0, 11\]; .*seed-1/c3po has 12, at"):
        steady_page([tmp_path])


def test_on_a_cpu_the_evaluation_after_a_run_is_a_job_of_its_own(tmp_path: Path) -> None:
    write_part(tmp_path, 1, ("c3po", "grpo"))
    for name in ("c3po", "grpo"):
        file = tmp_path / f"seed-1/{name}/metrics.jsonl"
        file.write_text(re.sub(r', "evaluation/pass_at_1": [0-9.]+', "", file.read_text()))
    write_evaluation(tmp_path / "seed-1/c3po-after", 0.5, problems=20)
    (tmp_path / "seed-1/c3po-after/finished.json").write_text("{}")
    with pytest.raises(UserError, match="no seed at all with all of before-chosen, c3po, grpo"):
        steady_page([tmp_path])
    shutil.copytree(tmp_path / "seed-1/c3po-after", tmp_path / "seed-1/grpo-after")
    tables, _, numbers = steady_page([tmp_path])
    found = numbers["outcome"]["held-out pass@1 after"]["settings"]["grpo"]["values"]
    assert "| grpo-after | 0 |" in tables["cost"] and found == [
        json.loads((tmp_path / "seed-1/grpo-after/result.json").read_text())["pass_at_1"]
    ]


def test_the_frames_of_the_pages_have_a_place_for_every_table(tmp_path: Path) -> None:
    """And the rates of the tasks go on a page."""
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "examples/study/pages", docs)
    for seed in (1, 2):
        write_part(tmp_path / "part", seed, ("c3po", "grpo", *NARROW))
        write_gym(tmp_path / "stages", seed)
    (tmp_path / "tasks.json").write_text(json.dumps({"solve_rate": {"gcd": 0.25, "lcm": 0.9}, "kept": ["gcd"]}))
    pairs = {
        "epochs": (write_all(tmp_path, starts()), {"tasks": tmp_path / "tasks.json"}),
        "c3po": (tmp_path / "part", {"settings": ("c3po", "grpo"), "partial": True}),
        "fp8": (tmp_path / "part", {"partial": True}),
        "stages": (tmp_path / "stages", {"partial": True, "tasks": tmp_path / "tasks.json"}),
    }
    for name, (out, more) in pairs.items():
        main(Flags(name, out=out, gather=(), docs=docs, page=f"study-{name}-gpu", **more))  # type: ignore[arg-type]
    for page_text in ((docs / f"study-{name}-gpu.md").read_text() for name in pairs):
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
