"""What an evaluation says of its rewards."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ring.analysis.read_run import NOT_GRADED
from megatron_ring.rewards.composition import Composition, combine
from megatron_ring.rewards.interface import JUDGE_FAILURE, MACHINE_FAILURE, RAW_SCORE, Reward
from megatron_ring.rewards.parts import Part, Scale, Source
from megatron_ring.rollout.evaluation import figures, summarize, told
from megatron_ring.rollout.records import Rollout, ScoredRollout
from tests.rollout.responses import completion


def scored(prompt: int, domain: str, reward: float, **detail: Any) -> ScoredRollout:
    return ScoredRollout(Rollout(prompt, 0, f"p{prompt}", domain, [1], 0, completion(4)), reward, "why", detail)


def test_raw_scores_and_failures_are_no_part_of_pass_at_1() -> None:
    right, wrong, failed = scored(0, "math", 1.0), scored(1, "math", 0.0), scored(2, "math", 0.0, **{MACHINE_FAILURE: "x"})
    liked = [scored(3, "reward-model", -7.5, **{RAW_SCORE: True}), scored(4, "reward-model", 2.5, **{RAW_SCORE: True})]
    found = summarize([figures(item) for item in (right, wrong, failed, *liked)])
    assert found["pass_at_1"] == 0.5 and found["problems"] == 2
    assert found["raw_score_mean"] == -2.5 and found["problems_with_raw_scores"] == 2 and found["without_verdict"] == 1
    assert found["by_domain"] == {
        "math": {"problems": 2, "pass_at_1": 0.5, "without_verdict": 1},
        "reward-model": {"problems": 0, "problems_with_raw_scores": 2, "raw_score_mean": -2.5},
    }
    assert told(found) == (
        "pass@1 0.500 on 2 problems; raw scores of a model -2.500 in the mean on 2 problems; 1 responses without a verdict, "
        "counted nowhere"
    )
    assert told(summarize([figures(right)])) == "pass@1 1.000 on 1 problems"
    assert "pass_at_1" not in summarize([figures(item) for item in liked])
    assert {MACHINE_FAILURE, JUDGE_FAILURE, RAW_SCORE} == NOT_GRADED


@pytest.mark.parametrize(
    ("part", "by_rule", "raw"),
    [
        (Part("liked", Source("reward-model"), 0.5), (), True),
        (Part("liked", Source("reward-model"), 0.5, scale=Scale(1.0, 2.0)), (), True),
        (Part("liked", Source("reward-model"), 0.5, scale=Scale(1.0, 2.0, True)), (), False),
        (Part("liked", Source("reward-model"), 0.0), (), False),
        (Part("liked", Source("reward-model"), 0.5), ("liked",), False),
    ],
)
def test_a_composition_with_a_raw_score(part: Part, by_rule: tuple[str, ...], raw: bool) -> None:
    rewards = {"right": Reward(1.0, "r"), "liked": Reward(-3.0, "m", {RAW_SCORE: True})}
    total = combine(Composition((Part("right", Source("math")), part)), rewards, None, by_rule)
    assert (RAW_SCORE in total.detail) == raw
