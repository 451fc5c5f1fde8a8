"""docs/reference/metrics.md has every key that real runs write, and no key that none of them writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.judging.rule_server import RuleServer
from tests.mains.conftest import command, rl_flags, run

PLACEHOLDER = re.compile(r"CORPUS|DOMAIN|FILE|LAYER|NAME|NUMBER|PHASE")
# Written where a reward model scores or a judge fails: tests/mains/test_reward.py, tests/rollout/test_evaluation.py.
ELSEWHERE = {"evaluation/raw_score_mean", "evaluation/raw_score_mean/DOMAIN", "evaluation/without_verdict"}
COMPOSED = {
    "parts": [
        {"name": "correct", "domain": "math"},
        {"name": "seen", "domain": "math", "weight": 0},
        {"name": "judge", "domain": "judge", "weight": 0.1, "rules": [{"domain": "math"}]},
    ],
    "gates": [{"name": "boxed", "domain": "format/one_box", "with": {}}],
    "length": {"maximum": 40, "cache": 20},
}


def documented(stage: str) -> dict[str, bool]:
    """Each key of a stage's tables, placeholders and all, and whether only CUDA writes it."""
    text = (ROOT / "docs/reference/metrics.md").read_text()
    section = re.split(r"^## (.+)$", text, flags=re.M)
    found = {}
    for row in section[section.index(stage) + 1].splitlines():
        if row.startswith("| `"):
            keys, _, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:4])
            found |= {key: meaning.startswith("CUDA") for key in re.findall(r"`([^`]+)`", keys)}
    return found


def written(run_dir: Path) -> set[str]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return {key for line in lines for key in json.loads(line)}


def differences(keys: set[str], page: dict[str, bool]) -> tuple[list[str], list[str]]:
    """Keys that the page does not have; rows of the page that no key fits."""
    patterns = {row: re.compile(PLACEHOLDER.sub(".+", re.escape(row))) for row in page}
    plain = {row for row in page if not PLACEHOLDER.search(row)}
    unknown = [key for key in keys if key not in plain and not any(patterns[row].fullmatch(key) for row in page)]
    fits = {row for row in page if any(patterns[row].fullmatch(key) for key in keys)}
    return sorted(unknown), sorted(row for row, cuda in page.items() if not cuda and row not in fits)


@pytest.mark.slow
def test_sft(sft_run: Path) -> None:
    assert differences(written(sft_run), documented("SFT")) == ([], [])


@pytest.mark.slow
def test_rl_with_everything_that_adds_a_key(tiny_data: Path, sft_checkpoint: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tiny_data / "rl_prompts.jsonl").read_text().splitlines()]
    rows = [row | {"domain": "composed"} if row["domain"] == "math" else row for row in rows]
    prompts, compositions, out = tmp_path / "prompts.jsonl", tmp_path / "compositions.json", tmp_path / "run"
    more, stages = tmp_path / "more.jsonl", tmp_path / "stages.yaml"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows[::2]))
    more.write_text("".join(json.dumps(row) + "\n" for row in rows[1::2]))
    stages.write_text(f"stages:\n  - prompts: [{{file: {prompts}}}, {{file: {more}}}]\n")
    compositions.write_text(json.dumps({"composed": COMPOSED}))
    flags = rl_flags(
        tiny_data, out, sft_checkpoint, "--data.prompts", str(stages), "--rewards.compositions", str(compositions),
        "--steps", "3", "--save-every", "1", "--budget.max-cuts", "2", "--budget.tokens", "100", "--offload-optimizer",
        "--objective.old-logprobs", "recomputed", "--correction.name", "icepop", "--correction.routes", "replay",
        "--alarms.action", "warn", "--alarms.entropy-floor", "9", "--evaluation.every", "1", "--evaluation.prompts",
        str(tiny_data / "heldout.jsonl"), "--data.drop-after", "3", "--updates-per-step", "2", "--shaping.normalise",
        "running", "--rewards.judge.model", "rule", "--rewards.judge.again", "1",
    )  # fmt: skip
    with RuleServer() as server:
        done = run(command("megatron_ring.rl", *flags, "--rewards.judge.url", server.url))
    assert done.returncode == 0, done.stderr
    unknown, missing = differences(written(out), documented("RL"))
    assert not unknown and set(missing) == ELSEWHERE


def test_differences_are_seen() -> None:
    page = {"loss": False, "reward/mean/DOMAIN": False, "memory/allocated_gib/PHASE": True, "gone": False}
    assert differences({"loss", "reward/mean/logic/maze", "new"}, page) == (["new"], ["gone"])
