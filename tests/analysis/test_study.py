"""A study's numbers by hand calculation, its tables, figures and page; on run directories with known metrics."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from megatron_ring.analysis import study_c3po
from megatron_ring.analysis.study import (
    STEADINESS,
    Row,
    as_json,
    best_window,
    by_setting,
    collapse_step,
    first_window,
    last_window,
    measure_all,
    read_cell,
    spike_ratio,
)
from megatron_ring.analysis.study_page import write_page
from megatron_ring.analysis.study_tables import by_seed, table
from megatron_ring.errors import UserError
from tests.analysis.plausible import rl_record, write_evaluation, write_jsonl, write_rl, write_sft

SEEDS = (1, 2, 3)


def write_norms(path: Path, norms: list[float]) -> Path:
    records = [{**rl_record(step, random.Random(step)), "grad_norm": norm} for step, norm in enumerate(norms, start=1)]
    write_jsonl(path / "metrics.jsonl", records)
    return path


def test_measures_are_those_of_the_metrics(tmp_path: Path) -> None:
    a = read_cell("a", 2, [write_norms(tmp_path / "a2", [1.0, 3.0])], {})
    b = read_cell("a", 1, [write_norms(tmp_path / "a1", [2.0, 2.0, 5.0])], {})
    groups = by_setting([a, b])
    assert [cell.seed for cell in groups["a"]] == [1, 2]
    rows = {row.name: row.values["a"] for row in measure_all(groups, STEADINESS)}
    assert rows["trained tokens, CV"] == (0.0, 0.0)
    assert rows["gradient norm, CV"] == pytest.approx((math.sqrt(2) / 3, 0.5))
    assert rows["gradient norm, step to step"] == pytest.approx((math.sqrt(9 / 2 / 2) / 3, math.sqrt(4 / 2) / 2))
    assert rows["gradient norm, largest over median"] == pytest.approx((2.5, 1.5))
    assert measure_all(groups, {"late": ("grad_norm", min)}, skip=1)[0].values["a"] == (2.0, 3.0)


def test_stages_count_on(tmp_path: Path) -> None:
    runs = [write_norms(tmp_path / "one", [1.0, 2.0]), write_norms(tmp_path / "two", [3.0])]
    cell = read_cell("two stages", 1, runs, {})
    assert [row["step"] for row in cell.metrics] == [1, 2, 3] and cell.series("grad_norm") == [1.0, 2.0, 3.0]


def test_a_step_without_the_metric_is_named(tmp_path: Path) -> None:
    cell = read_cell("a", 1, [write_norms(tmp_path / "a", [1.0, math.nan])], {})
    with pytest.raises(UserError, match=r"metrics.jsonl: grad_norm is missing or NaN"):
        cell.series("grad_norm")


def test_settings_of_different_seeds_are_not_compared(tmp_path: Path) -> None:
    path = write_norms(tmp_path / "a", [1.0])
    with pytest.raises(UserError, match="different seeds"):
        by_setting([read_cell("a", 1, [path], {}), read_cell("b", 2, [path], {})])


def test_collapse_is_a_fall_below_half_of_the_best_window() -> None:
    assert collapse_step([0.6] * 40) is None
    assert collapse_step([0.1 + 0.01 * step for step in range(60)]) is None
    # Best window 0.6; a window of k zeros and 10 − k times 0.6 is below 0.3 from k = 6 on.
    assert collapse_step([0.6] * 20 + [0.0] * 20) == 26
    assert collapse_step([0.6] * 20 + [0.0] * 4 + [0.6] * 20) is None, "a dip is no collapse"
    assert collapse_step([0.0] * 10 + [0.6] * 10) is None
    assert collapse_step([0.5, 0.1]) is None, "one window: nothing to fall from"


def test_windows() -> None:
    values = [float(value) for value in (*range(10), *range(20, 0, -1))]
    assert first_window(values) == 4.5 and last_window(values) == 5.5 and best_window(values) == 15.5
    assert first_window([1.0, 3.0]) == last_window([1.0, 3.0]) == best_window([1.0, 3.0]) == 2.0
    assert spike_ratio([1.0, 2.0, 3.0, 10.0]) == 4.0


def test_tables_show_mean_spread_and_what_exceeds_it() -> None:
    rows = [
        Row("far apart", {"a": (0.1, 0.2, 0.3), "b": (1.1, 1.21, 1.29)}),
        Row("near", {"a": (0.1, 0.2, 0.3), "b": (0.2, 0.1, 0.3)}),
        Row("none", {"a": (0.0, 0.0, 0.0), "b": (2000.0, 2001.0, 2002.0)}),
        Row("of one", {"a": (30.0, 40.0, 50.0)}),
        Row("equal", {"a": (0.5, 0.5, 0.5), "b": (0.5, 0.5, 0.5)}),
    ]
    lines = table(rows, ("a", "b"), (("a", "b"), ("b", "c")), "measure").splitlines()
    assert lines[0] == "| measure | a | b | b − a |"
    assert lines[2] == "| far apart | 0.200 ± 0.100 | 1.200 ± 0.095 | **+1.000 (0.975 to 1.025)** |"
    assert lines[3] == "| near | 0.200 ± 0.100 | 0.200 ± 0.100 | 0.000 (-0.248 to 0.248) |"
    assert lines[4] == "| none | 0 | 2,001 ± 1 | **+2,001 (1,999 to 2,003)** |"
    assert lines[5] == "| of one | 40.0 ± 10.0 |  |  |"
    assert lines[6] == "| equal | 0.5 | 0.5 | 0 |"
    assert by_seed({"a": ["5", "none"]}, (3, 4), "step").splitlines()[2] == "| a | 5 | none |"
    found = as_json(rows, (("a", "b"),))
    assert found["far apart"]["settings"]["b"]["values"] == [1.1, 1.21, 1.29]
    low, high = found["far apart"]["differences"]["b - a"]["interval_95"]
    assert (low, high) == pytest.approx((0.97516, 1.02484), abs=1e-5)
    assert found["of one"]["differences"] == {}


def fill_c3po(out: Path) -> None:
    for seed in SEEDS:
        root = out / f"seed-{seed}"
        (write_sft(root / "sft") / "selection.json").write_text(
            json.dumps({"checkpoint": "step_80", "epoch": 2, "entropy": 0.5, "reason": "r", "band": [0.3, 0.5]})
        )
        write_sft(root / "over")
        for start in ("chosen", "over"):
            write_evaluation(root / f"before-{start}", 0.3, problems=30)
        for index, setting in enumerate((*study_c3po.STEADY, *study_c3po.COLLAPSE, *study_c3po.TIMED)):
            write_rl(root / setting, steps=30, seed=10 * seed + index)
            write_evaluation(root / f"{setting}-after", 0.5, problems=30)


def test_the_page_of_c3po(tmp_path: Path) -> None:
    fill_c3po(tmp_path / "runs")
    docs = tmp_path / "docs"
    write_page(docs, "study-c3po", *study_c3po.page(tmp_path / "runs", SEEDS))
    numbers = json.loads((docs / "study-c3po.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "runs/seed-2/grpo/metrics.jsonl").read_text().splitlines()]
    norms = [row["grad_norm"] for row in rows]
    mean = sum(norms) / len(norms)
    by_hand = math.sqrt(sum((norm - mean) ** 2 for norm in norms) / len(norms)) / mean
    found = numbers["steadiness"]["gradient norm, CV"]["settings"]["grpo"]["values"]
    assert found[1] == pytest.approx(by_hand) and numbers["seeds"] == [1, 2, 3]
    result = json.loads((tmp_path / "runs/seed-3/c3po-after/result.json").read_text())
    assert numbers["outcome"]["held-out pass@1 after"]["settings"]["c3po"]["values"][2] == result["pass_at_1"]
    collapse = numbers["collapse"]["step of the collapse (of the last step, where none)"]["settings"]["over-grpo"]["values"]
    assert collapse == [30.0, 30.0, 30.0] and numbers["collapse steps"]["over-grpo"] == [None, None, None]
    for figure in ("study-c3po", "study-collapse"):
        image = (docs / "figures" / f"{figure}.png").read_bytes()
        assert image.startswith(b"\x89PNG") and len(image) < 200_000
    text = (docs / "study-c3po.md").read_text()
    assert "| gradient norm, CV |" in text and "epoch 2, entropy 0.500" in text
    # Written by hand around the tables: kept, and the tables are brought up to date.
    edited = text.replace("# study-c3po", "# A title").replace("| gradient norm, CV |", "| old |")
    (docs / "study-c3po.md").write_text(edited)
    write_page(docs, "study-c3po", *study_c3po.page(tmp_path / "runs", SEEDS))
    assert (docs / "study-c3po.md").read_text() == text.replace("# study-c3po", "# A title")
    (docs / "study-c3po.md").write_text("nothing here")
    with pytest.raises(UserError, match="no place for the table steadiness"):
        write_page(docs, "study-c3po", *study_c3po.page(tmp_path / "runs", SEEDS))
