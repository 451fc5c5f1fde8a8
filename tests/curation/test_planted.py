"""Planted damage in real problems: what is found, and what is dropped without reason. tools/check_curation.py does it in
full."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SHARED
from tools.check_curation import CheckOptions, check_planted
from tools.check_duplicates import check_near, check_templates
from tools.planted_rows import math_rows

DATA = SHARED / "data"
pytestmark = pytest.mark.skipif(not (DATA / "gsm8k_train.jsonl").is_file(), reason="GSM8K is not beside the project")


def test_planted_damage(tmp_path: Path) -> None:
    found = check_planted(CheckOptions(data=DATA, rows=1200), tmp_path)
    assert len(found["recall"]) >= 20
    assert {kind: share for kind, share in found["recall"].items() if share < 0.95} == {}, found
    assert sum(found["false_drops"].values()) <= 0.01, found["false_samples"]
    assert found["repaired"] >= 0.95


def test_duplicates_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.check_duplicates.DOCUMENTS", 1500)
    rows = math_rows(DATA / "gsm8k_train.jsonl")[:600]
    found = check_near(rows, 1)
    assert found["pairs"] > 100 and found["recall"] >= 0.95 and found["precision"] >= 0.99, found
    assert check_templates(rows[:100], 1)["kept"] >= 0.999
