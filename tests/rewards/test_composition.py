from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards import Reward, RewardPool, Scorer, ScoreRequest, verifier_for
from megatron_ring.rewards.composition import (
    Composition,
    LengthLimit,
    combine,
    overlong_penalty,
    read_composition,
    read_compositions,
    request_of,
)
from megatron_ring.rewards.interface import HELD_OUT, JUDGE_DISAGREEMENT, JUDGE_FAILURE, MACHINE_FAILURE
from megatron_ring.rewards.parts import Part, Scale, Source

DECLARED = {
    "parts": [
        {"name": "correct", "domain": "math", "answer": "value"},
        {"name": "rules", "domain": "instructions", "answer": "rules", "weight": 0.5},
    ],
    "gates": [
        {"name": "thinking", "domain": "format/thinking"},
        {"name": "latin", "domain": "format/script", "with": {"script": "latin", "share": 0.8}},
    ],
    "length": {"maximum": 100, "cache": 40, "weight": 2},
}
GOOD = r"<think>Maybe \boxed{3}? No.</think> The answer is \boxed{5}."
PASSED = Reward(1.0, "")
REWARDS = {
    "correct": Reward(1.0, "correct"),
    "rules": Reward(0.0, "no_comma: 1 commas"),
    "thinking": PASSED,
    "latin": PASSED,
}
ANSWER = {"value": "5", "rules": {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}}
WEIGHTS = st.floats(0, 100)
VALUES = st.floats(-1, 1)
LENGTHS = st.integers(0, 400)


def format_value(name: str, response: str, **options: Any) -> float:
    reward = verifier_for(f"format/{name}").score(ScoreRequest(f"format/{name}", None, response, options))
    assert reward.reason and "\n" not in reward.reason
    return reward.value


def test_the_declared_example() -> None:
    composition = read_composition(json.loads(json.dumps(DECLARED)))
    composed = combine(composition, REWARDS, length=80)
    assert composed.value == 1.0 * 1 + 0.5 * 0 + 2 * -0.5
    assert composed.reason == "correct 1 (correct); rules 0 (no_comma: 1 commas); length 80 costs 1"
    assert composed.detail == {
        "parts": {"correct": [1.0, "correct"], "rules": [0.0, "no_comma: 1 commas"]},
        "gates": {"thinking": [1.0, ""], "latin": [1.0, ""]},
        "length_penalty": -0.5,
    }
    failed = combine(composition, {**REWARDS, "latin": Reward(0.0, "cyrillic")}, length=10)
    assert (failed.value, failed.reason) == (0.0, "gate latin: cyrillic")
    assert failed.detail["parts"] == composed.detail["parts"]


RULED = {"parts": [
    {"name": "right", "domain": "math", "answer": "value", "scale": 2,
     "rules": [{"domain": "format/script", "with": {"script": "latin", "share": 0.9}, "at_most": 0, "at_least": 2},
               {"domain": "logic/exact", "answer": "text"}]},
    {"name": "seen", "domain": "format/one_box", "weight": 0},
]}  # fmt: skip


def test_rules_come_first(tmp_path: Path) -> None:
    """The first rule decides against what is not in Latin letters, the second for what is the text; else the domain."""
    (tmp_path / "rewards.json").write_text(json.dumps({"ruled": RULED}))
    answer = {"value": "5", "text": {"text": "five"}}
    texts = [r"пять \boxed{5}", "```\nfive\n```\n\\boxed{4}", r"yes \boxed{5}", r"no \boxed{4}"]
    with Scorer(RewardPool(workers=1), tmp_path / "rewards.json") as scorer:
        assert scorer.start(["ruled"]) == {"math", "format/script", "logic/exact", "format/one_box"}
        rewards = scorer.score([ScoreRequest("ruled", None, text, answer) for text in texts])
    assert [reward.value for reward in rewards] == [0.0, 1.0, 2.0, 0.0]  # a rule's reward is not scaled
    assert [reward.detail["rules"]["right"] for reward in rewards] == [True, True, False, False]
    assert {reward.detail[HELD_OUT] for reward in rewards} == {1.0}


def test_a_part_of_no_weight_takes_no_verdict_away() -> None:
    composition = read_composition(RULED)
    lost = Reward(0.0, "no verdict, judge failed", {JUDGE_FAILURE: "judge failed"})
    found = combine(composition, {"right": Reward(0.5, "", {JUDGE_DISAGREEMENT: 0.25}), "seen": lost}, None)
    assert found.value == 1.0 and JUDGE_FAILURE not in found.detail and HELD_OUT not in found.detail
    assert found.detail[JUDGE_DISAGREEMENT] == 0.25
    found = combine(composition, {"right": lost, "seen": Reward(1.0, "")}, None)
    assert (found.value, found.reason, found.detail[JUDGE_FAILURE]) == (0.0, lost.reason, "judge failed")


@given(st.floats(-1e6, 1e6), st.floats(-100, 100), st.floats(0, 100))
def test_scales(reward: float, shift: float, scale: float) -> None:
    assert Scale(shift, scale)(reward) == pytest.approx(scale * reward - scale * shift, abs=1e-6)
    exponent = -scale * (reward - shift)
    expected = 0.0 if exponent > 700 else 1.0 / (1.0 + math.exp(exponent))
    assert Scale(shift, scale, True)(reward) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("failed", ["correct", "latin"])
def test_where_the_machine_failed_for_a_part_there_is_no_verdict(failed: str) -> None:
    composition = read_composition(DECLARED)
    lost = Reward(0.0, "no verdict, the machine failed: no memory", {MACHINE_FAILURE: "no memory"})
    # Neither a part of the sum, nor a gate that fails, nor a penalty for the length.
    for others in (REWARDS, {**REWARDS, "thinking": Reward(0.0, "none")}):
        total = combine(composition, {**others, failed: lost}, length=100)
        assert (total.value, total.reason) == (0.0, lost.reason) and total.detail[MACHINE_FAILURE] == "no memory"
        assert total.detail["length_penalty"] == -1 and total.detail["parts"]["rules"] == [0.0, "no_comma: 1 commas"]
    assert MACHINE_FAILURE not in combine(composition, REWARDS, length=100).detail


def test_each_part_is_scored_with_its_own_answer() -> None:
    composition = read_composition(DECLARED)

    def part_requests(composition: Composition, request: ScoreRequest) -> dict[str, ScoreRequest]:
        return {part.name: request_of(part.source, request) for part in (*composition.parts, *composition.gates)}

    requests = part_requests(composition, ScoreRequest("mixed", "p", GOOD, ANSWER, 7))
    assert requests["correct"] == ScoreRequest("math", "p", GOOD, "5", 7)
    assert requests["rules"].answer == ANSWER["rules"]
    assert requests["thinking"].answer == {"opened": False}
    assert requests["latin"].answer == {"script": "latin", "share": 0.8}
    whole = read_composition({"parts": [{"name": "a", "domain": "math"}]})
    assert part_requests(whole, ScoreRequest("mixed", None, "", "5"))["a"].answer == "5"
    for answer in ("5", {"value": "5"}):
        with pytest.raises(UserError, match="domain 'mixed': the answer must be an object with the key"):
            part_requests(composition, ScoreRequest("mixed", "p", GOOD, answer))
    for length in (None, -1):
        with pytest.raises(UserError, match="limits the response's length"):
            combine(composition, REWARDS, length)


def test_a_file_of_compositions_beside_plain_domains(tmp_path: Path) -> None:
    path = tmp_path / "rewards.json"
    path.write_text(json.dumps({"mixed": DECLARED}))
    with Scorer(RewardPool(workers=2), path) as scorer:
        scorer.start(["mixed", "math"])
        requests = [
            ScoreRequest("mixed", None, GOOD, ANSWER, 20),
            ScoreRequest("mixed", None, GOOD.replace("is", "is,"), ANSWER, 20),
            ScoreRequest("mixed", None, r"\boxed{5}", ANSWER, 90),
            ScoreRequest("math", None, r"\boxed{x+1}", "1+x"),
        ]
        seen: list[int] = []
        rewards = scorer.score(requests, seen.append)
        assert [reward.value for reward in rewards] == [1.5, 1.0, -1.5, 1.0]
        assert rewards[2].reason == "gate thinking: 0 <think> and 0 </think>, 1 and 1 wanted; length 90 costs 1.5"
        assert rewards[1].detail["parts"]["rules"][0] == 0 and rewards[3].detail == {}
        assert seen == [1, 2, 3, 4]
        with pytest.raises(UserError, match="give 'length' in tokens"):
            scorer.submit(ScoreRequest("mixed", None, GOOD, ANSWER))
        with pytest.raises(UserError, match=r"unknown domain 'poetry'.*or a domain of --compositions \(mixed\)"):
            scorer.check("poetry")
    path.write_text('{"mixed": {"parts": []}}')
    with pytest.raises(UserError, match=r"rewards.json: domain 'mixed': 'parts' is empty"):
        read_compositions(path)
    for content, problem in (("[1]", "make it an object"), ("{", "not JSON"), (None, "cannot be read")):
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError, match=problem):
            read_compositions(path)


@pytest.mark.parametrize(
    ("passes", "name", "options", "response"),
    [
        (1, "thinking", {}, GOOD),
        (1, "thinking", {}, "\n<think></think>\nx"),
        (0, "thinking", {}, "<think>a</think> \n"),
        (0, "thinking", {}, "a<think>b</think>c"),
        (0, "thinking", {}, "<think>a</think><think>b</think>c"),
        (0, "thinking", {}, "</think>a<think>"),
        (0, "thinking", {}, "<think>a"),
        (1, "thinking", {"opened": True}, "a</think>b"),
        (0, "thinking", {"opened": True}, "<think>a</think>b"),
        (1, "one_box", {}, GOOD),
        (1, "one_box", {}, r"\boxed {\frac{1}{2}}"),
        (0, "one_box", {}, r"\boxed{5} \boxed{5}"),
        (0, "one_box", {}, r"\boxed{5"),
        (0, "one_box", {}, r"\boxed{ }"),
        (0, "one_box", {}, r"\boxed{\boxed{5}}"),
        (0, "one_box", {}, r"<think>\boxed{5}</think>5"),
        (1, "script", {"script": "han", "share": 0.9}, "<think>hm</think>答案是五。"),
        (0, "script", {"script": "han", "share": 0.9}, "答案 is five"),
        (1, "script", {"script": "cyrillic", "share": 0.5}, "Ответ: ab"),
        (1, "script", {}, "42 = 6 · 7"),
        (1, "script", {"script": "kana", "share": 1.0}, "こたえ、コタエ"),
        (1, "language", {}, "The answer follows from what we have shown before."),
        (0, "language", {"language": "de"}, "The answer follows from what we have shown before."),
        (0, "language", {"language": "en"}, "42"),
        (1, "style", {"most": 2}, "<think># a\n# b\n# c</think>## one\nand **two**"),
        (0, "style", {"most": 2}, "## one\n- two\n3. three"),
        (0, "style", {"most": 0}, "> so\n"),
        (1, "style", {"most": 0}, "2 * 3 - 4 is **not** this: 2 ** 3\n```\n# code\n- x\n```".replace("**not**", "not")),
        (1, "style", {"most": 1}, "- a\n- b " + "word " * 200),
    ],
)
def test_forms(passes: int, name: str, options: dict[str, Any], response: str) -> None:
    assert format_value(name, response, **options) == passes


@pytest.mark.timeout(60)
@pytest.mark.parametrize("piece", [r"\boxed{", "<think>", "</think>", "\\boxed" + " " * 50, "\x00", "\ud800", "é你"])
def test_forms_of_a_hostile_megabyte(piece: str) -> None:
    for name in ("thinking", "one_box", "script", "style"):
        format_value(name, piece * (1_000_000 // len(piece)))


def test_the_penalty_at_its_corners() -> None:
    expected = {0: 0.0, 60: 0.0, 61: -0.025, 80: -0.5, 100: -1.0, 101: -1.0}
    assert {length: overlong_penalty(length, 100, 40) for length in expected} == pytest.approx(expected)
    assert [overlong_penalty(length, 100, 0) for length in (100, 101)] == [0.0, -1.0]
    assert overlong_penalty(0, 100, 100) == 0.0


@given(LENGTHS, LENGTHS, st.integers(1, 300), st.integers(0, 300))
def test_the_penalty_is_bounded_and_never_rises(first: int, second: int, maximum: int, cache: int) -> None:
    cache = min(cache, maximum)
    shorter, longer = (overlong_penalty(length, maximum, cache) for length in sorted((first, second)))
    assert -1 <= longer <= shorter <= 0
    assert (overlong_penalty(first, maximum, cache) == 0) == (first <= maximum - cache)
    assert (overlong_penalty(first, maximum, cache) == -1) == (first >= maximum + (cache == 0))


@given(st.lists(st.tuples(WEIGHTS, VALUES), min_size=1, max_size=5), LENGTHS, WEIGHTS, st.floats(0, 4), st.booleans())
def test_totals(shares: list[tuple[float, float]], length: int, length_weight: float, factor: float, passes: bool) -> None:
    def total(scale: float, limited: bool) -> float:
        parts = tuple(Part(str(i), Source("math"), weight * scale) for i, (weight, _) in enumerate(shares))
        limit = LengthLimit(100, 40, length_weight) if limited else None
        composition = Composition(parts, (Part("gate", Source("format/one_box")),), limit)
        rewards = {str(i): Reward(value, "") for i, (_, value) in enumerate(shares)}
        return combine(composition, {**rewards, "gate": Reward(float(passes), "")}, length).value

    weighted = sum(weight * value for weight, value in shares) if passes else 0.0
    penalty = length_weight * overlong_penalty(length, 100, 40)
    assert total(1, limited=False) == pytest.approx(weighted)
    assert total(factor, limited=False) == pytest.approx(factor * weighted)
    assert total(1, limited=True) == pytest.approx(weighted + penalty)
    bound = sum(weight for weight, _ in shares)
    assert -bound - length_weight - 1e-9 <= total(1, limited=True) <= bound + 1e-9


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ([], "must be an object"),
        ({"parts": []}, "'parts' is empty"),
        ({"parts": {}}, "'parts' must be a list"),
        ({"parts": [{"name": "a"}]}, "has no 'domain'"),
        ({"parts": [{"name": "a", "domain": "poetry"}]}, "unknown domain 'poetry'"),
        ({"parts": [{"name": " ", "domain": "math"}]}, "'name' must be text"),
        ({"parts": [{"name": "a", "domain": "math", "weight": -1}]}, "'weight' must be a number of at least 0"),
        ({"parts": [{"name": "a", "domain": "math", "weight": float("nan")}]}, "'weight' must be a number"),
        ({"parts": [{"name": "a", "domain": "math"}] * 2}, "the name 'a' is declared twice"),
        ({"parts": [{"name": "thinking", "domain": "math"}]}, "the name 'thinking' is declared twice"),
        ({"parts": [{"name": "a", "domain": "math", "answer": "x", "with": 1}]}, "both 'answer' and 'with'"),
        ({"parts": [{"name": "a", "domain": "math", "answer": 1}]}, "'answer' must be text"),
        ({"parts": [{"name": "a", "domain": "instructions", "with": {}}]}, "instruction_id_list"),
        ({"gates": [{"name": "a", "domain": "math", "weight": 1}]}, "unknown key 'weight'"),
        ({"gates": [{"name": "a"}]}, "has no 'domain'"),
        ({"gates": [{"name": "a", "domain": "format/one_box", "with": {"share": 1}}]}, "unknown option 'share'"),
        ({"gates": [{"name": "a", "domain": "format/thinking", "with": {"opened": 1}}]}, "one of false, true"),
        ({"gates": [{"name": "a", "domain": "format/script", "with": {"script": "runes"}}]}, "'script' must be one of"),
        ({"gates": [{"name": "a", "domain": "format/script", "with": {"script": ["latin"]}}]}, "'script' must be"),
        ({"gates": [{"name": "a", "domain": "format/script", "with": {"share": 1.5}}]}, "from 0 to 1"),
        ({"gates": [{"name": "a", "domain": "format/language", "with": {"language": "xx"}}]}, "must be one of af, ar"),
        ({"gates": [{"name": "a", "domain": "format/language", "with": []}]}, "must be an object"),
        ({"gates": [{"name": "a", "domain": "format/style", "with": {"most": -1}}]}, "'most' must be a number"),
        ({"length": {"maximum": 10}}, "has no 'cache'"),
        ({"length": {"maximum": 10, "cache": 11}}, "0 <= cache <= maximum"),
        ({"length": {"maximum": 10.5, "cache": 1}}, "whole numbers"),
        ({"lenght": None}, "unknown key 'lenght'"),
        ({"parts": [{"name": "a", "domain": "judge", "rules": [{"domain": "judge"}]}]}, "'judge' is no rule"),
        ({"parts": [{"name": "a", "domain": "judge", "rules": [{"domain": "poetry"}]}]}, "'a': unknown domain 'poetry'"),
        ({"parts": [{"name": "a", "domain": "judge", "rules": {}}]}, "'rules' must be a list"),
        (
            {"parts": [{"name": "a", "domain": "judge", "rules": [{"domain": "math", "at_most": 1, "at_least": 1}]}]},
            "always",
        ),
        ({"parts": [{"name": "a", "domain": "math", "sigmoid": 1}]}, "'sigmoid' must be true or false"),
        ({"parts": [{"name": "a", "domain": "math", "scale": -1}]}, "'scale' must be a number of at least 0"),
        ({"parts": [{"name": "a", "domain": "math", "shift": "x"}]}, "'shift' must be a number that is finite"),
        ({"parts": [{"name": "a", "domain": "math", "rules": [{"domain": "math", "with": {"x": 1}}]}]}, "'a': "),
        ({"gates": [{"name": "a", "domain": "math", "scale": 1}]}, "unknown key 'scale'"),
    ],
)
def test_a_bad_declaration_is_named(change: Any, problem: str) -> None:
    declared = {**DECLARED, **change} if isinstance(change, dict) else change
    with pytest.raises(UserError, match=re.escape(problem)):
        read_composition(declared)
