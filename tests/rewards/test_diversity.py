"""The share of a group's other answers that differ, against counting pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards import RewardPool, Scorer, ScoreRequest
from megatron_ring.rewards.batch import BATCH_SCORERS, BatchItem, load_batch_scorer
from tests.conftest import ROOT

RESPONSES = {"1": r"so \boxed{1}", "1 ": r"\boxed{ 1 }", "2": r"\boxed{3} no: \boxed{2}", "": "I do not know"}


def items_of(groups: list[list[str]]) -> list[BatchItem]:
    return [
        BatchItem(ScoreRequest("group/diversity", None, RESPONSES[name], {}), group, sample)
        for group, names in enumerate(groups)
        for sample, name in enumerate(names)
    ]


@given(st.lists(st.lists(st.sampled_from(sorted(RESPONSES)), min_size=1, max_size=6), max_size=4))
def test_rewards_are_the_share_of_other_answers_that_differ(groups: list[list[str]]) -> None:
    items = items_of(groups)
    rewards = load_batch_scorer("group/diversity", None).score(items)
    for item, reward in zip(items, rewards, strict=True):
        names = groups[item.group]
        mine = names[item.sample].strip()
        others = [name.strip() for place, name in enumerate(names) if place != item.sample and name]
        expected = sum(other != mine for other in others) / len(others) if mine and others else 0.0
        assert reward.value == pytest.approx(expected) and reward.reason


def test_every_entry_can_be_loaded() -> None:
    for name in BATCH_SCORERS:
        if name.startswith("group/"):
            assert load_batch_scorer(name, None).score([]) == []


def test_a_domain_may_be_scored_by_it_where_there_are_groups() -> None:
    request = ScoreRequest("group/diversity", None, RESPONSES["1"], {})
    with RewardPool(1) as pool, Scorer(pool) as scorer:
        assert scorer.start(["math", "group/diversity"]) == {"math", "group/diversity"}
        pending = scorer.submit(request, (7, 1))
        scorer.submit(request, (7, 0))
        waiting = scorer.take_waiting("group/diversity")
        assert [(item.group, item.sample) for item, _ in waiting] == [(7, 0), (7, 1)]
        rewards = load_batch_scorer("group/diversity", None).score([item for item, _ in waiting])
        for (_, promise), reward in zip(waiting, rewards, strict=True):
            promise.set_result(reward)
        assert pending.result().reason == "0 of 1 other answers differ" and scorer.take_waiting("group/diversity") == []
        with pytest.raises(UserError, match="is scored with its group, in RL and evaluations alone"):
            scorer.submit(request)
        with pytest.raises(UserError, match=r"unknown domain 'poetry'.*or a batch scorer \(group/diversity"):
            scorer.check("poetry")


def test_the_tool_says_that_it_has_no_groups(tmp_path: Path) -> None:
    rows = [{"domain": "group/diversity", "response": "x", "answer": {}}, {"domain": "math", "response": "x", "answer": "1"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl"), "--workers", "1"]
    done = subprocess.run([sys.executable, "tools/score.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["reward"] == 0 and "scored with its group" in first["reason"] and second["reward"] == 0
