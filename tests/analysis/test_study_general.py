"""The page of the study of general RL on made-up runs: what its tables say is what was measured."""

from __future__ import annotations

from pathlib import Path

from megatron_ring.analysis.study_general import ALONE, BEFORE, FOLDERS, REPLAY, general_page
from megatron_ring.analysis.study_page import write_page
from tests.analysis.plausible import write_jsonl, write_rl

ROOT = Path(__file__).resolve().parents[2]


def measured(shift: float) -> dict[str, dict[str, float]]:
    return {
        name: {"value": value + shift, "low": value + shift - 0.05, "high": value + shift + 0.05, "prompts": 40}
        for name, value in {"win rate": 0.5, "quality": 1.0, "answers": 0.3, "rules": 0.1, "reasoning": 0.4}.items()
    }


def test_the_page_has_differences_over_seeds_and_intervals_of_each(tmp_path: Path) -> None:
    found = {}
    for seed in (1, 2):
        for folder in FOLDERS.values():
            write_rl(tmp_path / f"seed-{seed}" / folder)
        write_jsonl(
            tmp_path / f"seed-{seed}" / "reward" / "metrics.jsonl", [{"step": 9, "validation/accuracy": 0.9 + seed / 100}]
        )
        found[seed] = {BEFORE: measured(0), REPLAY: measured(0.1 + seed / 100), ALONE: measured(-0.1)}
    tables, figures, numbers = general_page(tmp_path, found)
    reasoning = numbers["held out"]["reasoning"]
    assert reasoning["settings"][REPLAY]["values"] == [0.51, 0.52]
    difference = reasoning["differences"][f"{REPLAY} - {BEFORE}"]
    assert abs(difference["mean"] - 0.115) < 1e-9 and difference["interval_95"][0] < 0.115 < difference["interval_95"][1]
    assert numbers["reward model, validation accuracy"] == [0.91, 0.92]
    assert f"| reasoning, {ALONE} | 0.300 (0.250 to 0.350) | 0.300 (0.250 to 0.350) |" in tables["by seed"]
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "study-general.md").write_text((ROOT / "docs/study-general.md").read_text())
    write_page(docs, "study-general", tables, figures, numbers)
    assert tables["held out"] in (docs / "study-general.md").read_text()
    assert {path.stem for path in (docs / "figures").glob("*.png")} == {"study-general", "study-general-rates"}
