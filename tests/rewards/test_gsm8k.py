"""The whole training split of GSM8K, by the quick path alone."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import pytest

from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.boxed import marked_answer
from megatron_ring.rewards.math import quick_score

GSM8K = Path(__file__).resolve().parents[2] / "../shared/data/gsm8k_train.jsonl"
COUNT = 7473


@lru_cache(maxsize=1)
def solutions() -> list[str]:
    if not GSM8K.is_file():
        pytest.skip("GSM8K (../shared/data/gsm8k_train.jsonl) is not here")
    with GSM8K.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def golds() -> list[str]:
    found = [marked_answer(solution) for solution in solutions()]
    assert None not in found
    return [gold for gold in found if gold is not None]


def value(response: str, answer: object) -> float:
    reward = quick_score(ScoreRequest("math", None, response, answer))
    assert reward is not None, "left to Math-Verify"
    return reward.value


def test_every_answer_is_extracted() -> None:
    assert len(golds()) == COUNT
    assert all(re.fullmatch(r"-?[\d,]+(\.\d+)?", gold) for gold in golds())


def test_every_answer_agrees_with_itself_and_none_with_one_more() -> None:
    assert sum(value(rf"\boxed{{{gold}}}", gold) for gold in golds()) == COUNT
    assert sum(value(rf"\boxed{{{float(gold.replace(',', '')) + 1:.10g}}}", gold) for gold in golds()) == 0


def test_rationales_with_their_last_number_boxed() -> None:
    right = 0
    for solution, gold in zip(solutions(), golds(), strict=True):
        rationale, _, final = solution.rpartition("####")
        number = re.findall(r"-?[\d,]*\.?\d+", final)[-1]
        right += value(rf"{rationale}The answer is \boxed{{{number}}}.", gold)
    assert right == COUNT


def test_a_reference_may_be_a_whole_solution() -> None:
    right = sum(value(rf"\boxed{{\${gold}}}", solution) for solution, gold in zip(solutions(), golds(), strict=True))
    assert right == COUNT
    assert marked_answer("no mark") is None and marked_answer("a #### ") is None
    assert marked_answer("x #### 1 y #### 1,234\nmore") == "1,234"
