"""References that no response can earn a reward from: told before anything is sampled, in the words of the score."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.errors import UserError
from megatron_ring.rewards import code, verifier_for
from megatron_ring.rewards.composition import read_composition
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.logic import GAMES
from megatron_ring.rewards.registry import VERIFIERS
from megatron_ring.rewards.scorer import check_answers

# Something that every verifier looks at twice: thinking, a box, a fenced block of code.
RESPONSE = "<think>\nso\n</think>\n\\boxed{1}\n```python\nprint(1)\n```\n"
BAD: list[tuple[str, Any, str]] = [
    ("math", {"x": 1}, "must be text or a number, not dict"),
    ("math", True, "must be text or a number, not bool"),
    ("math", r"\boxed{ }", "is empty"),
    ("science", ["5 m"], "must be text or a number, not list"),
    ("code", {"x": 1}, "unknown reference format None"),
    ("code", {"format": ["tests"], "tests": "assert True"}, "unknown reference format"),
    ("code", {"tests": []}, "holds no tests"),
    ("code", {"tests": [{"stdin": "1"}]}, "not of the form tests"),
    ("code", {"private_test_cases": "eJwDAAAAAAE="}, "not of the form livecodebench: EOFError"),
    ("code", {"tests": [{"input": "", "output": ""}], "time_limit": 10**400}, "not of the form tests: OverflowError"),
    ("code", "x", "is not JSON"),
    ("instructions", "x", "must be an object, not str"),
    ("instructions", {"instruction_id_list": ["no:such"], "kwargs": [None]}, "unknown instruction"),
    ("logic/countdown", {"numbers": [1, 2]}, "an object with 'use_all'"),
    ("logic/sudoku", {"givens": ["1"]}, "the reference is malformed"),
    ("logic/exact", {"text": " "}, "not blank"),
    ("format/script", {"script": "runes"}, "'script' must be one of"),
    ("format/thinking", "x", "must be an object"),
]
GOOD: list[tuple[str, Any]] = [
    ("math", 5), ("math", "the proof is left to the reader"), ("math", r"\frac{1}{2}"), ("science", "3 m/s"),
    ("code", {"tests": "assert f(1) == 1"}), ("code", json.dumps({"tests": [{"input": "1", "output": "1"}]})),
    ("instructions", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}),
    ("format/thinking", {}), ("logic/exact", {"text": "yes"}), ("baseline/math-verify", {"anything": 1}),
]  # fmt: skip


def score(domain: str, answer: Any) -> Reward:
    if domain == "code":  # without a sandbox: a reference is read first
        return code.judge(RESPONSE, answer, runner=None)  # type: ignore[arg-type]
    return verifier_for(domain).score(ScoreRequest(domain, None, RESPONSE, answer))


@pytest.mark.parametrize(("domain", "answer", "said"), BAD)
def test_what_is_refused_scores_0_for_the_same_reason(domain: str, answer: Any, said: str) -> None:
    with pytest.raises(UserError) as refused:
        check_answers([("p.jsonl:1", "math", "5"), ("p.jsonl:2", domain, answer)], {})
    place = f"p.jsonl:2: 'answer' is of no use to domain {domain!r}: "
    assert str(refused.value).startswith(place) and said in str(refused.value) and "\n" not in str(refused.value)
    reward = score(domain, answer)
    assert reward.value == 0 and reward.reason == str(refused.value).removeprefix(place)


def test_what_can_be_used_passes() -> None:
    check_answers([("here", *row) for row in GOOD], {})
    for name, game in GAMES.items():
        problem = game.generate(3, 1)
        check_answers([("here", problem["domain"], problem["answer"])], {})
        response = game.respond(problem["metadata"]["witness"])
        assert verifier_for(f"logic/{name}").score(ScoreRequest("", None, response, problem["answer"])).value == 1
    with pytest.raises(UserError, match=r"here: .*unknown domain 'poetry'"):
        check_answers([("here", "poetry", "x")], {})


@pytest.mark.parametrize("name", ["math", "science"])
def test_every_labelled_answer_that_a_response_earned_passes(name: str) -> None:
    lines = (Path(__file__).parent / f"labelled/{name}.jsonl").read_text().splitlines()
    earned = [row for row in map(json.loads, lines) if row["reward"] == 1]
    assert len(earned) > 100
    check_answers([(f"{name}:{place}", row["domain"], row["answer"]) for place, row in enumerate(earned)], {})


def test_every_domain_but_the_baseline_has_a_check() -> None:
    assert {name for name, verifier in VERIFIERS.items() if verifier.check_reference is None} == {"baseline/math-verify"}


def test_parts_and_gates_of_a_composition() -> None:
    declared = {
        "parts": [
            {"name": "correct", "domain": "math", "answer": "value"},
            {"name": "rules", "domain": "instructions", "answer": "rules"},
        ],
        "gates": [{"name": "thinking", "domain": "format/thinking"}, {"name": "boxed", "domain": "math", "with": "1"}],
    }
    composed = {"mixed": read_composition(declared)}
    rules = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}
    check_answers([("here", "mixed", {"value": "5", "rules": rules})], composed)
    for answer, said in (
        ({"value": "5"}, "with the key 'rules'"),
        ("5", "with the key 'value'"),
        ({"value": {}, "rules": rules}, "correct: the reference answer must be text"),
        ({"value": "5", "rules": "x"}, "rules: the reference answer must be an object"),
    ):
        with pytest.raises(UserError, match=f"^f:7: 'answer' is of no use to domain 'mixed': .*{said}"):
            check_answers([("f:7", "mixed", answer)], composed)
    with pytest.raises(UserError, match="'boxed': the reference answer must be text"):
        read_composition({"parts": [{"name": "boxed", "domain": "math", "with": {"x": 1}}]})


def test_a_hundred_thousand_rows_take_seconds() -> None:
    rows = [(f"f:{i}", *GOOD[i % len(GOOD)]) for i in range(100_000)]
    began = time.process_time()
    check_answers(rows, {})
    assert time.process_time() - began < 20


def test_the_line_of_a_prompt_file_is_named(tmp_path: Path) -> None:
    from megatron_ring.config.rewards import RewardConfig
    from megatron_ring.config.rl import RLDataConfig
    from megatron_ring.data.schedule import read_schedule
    from megatron_ring.planning.checks import Checks
    from megatron_ring.rollout.scoring import check_prompts

    path, config = tmp_path / "p.jsonl", RewardConfig()
    rows = [{"id": str(i), "domain": "math", "prompt": "?", "answer": "1"} for i in range(3)]
    rows[2] |= {"domain": "code", "answer": {"x": 1}}
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    said = rf"^{path}:5: 'answer' is of no use to domain 'code': unknown reference format"
    with pytest.raises(UserError, match=said):
        check_prompts(read_schedule(path).sources, config)
    for training in (None, RLDataConfig(prompts=path, tokenizer=tmp_path)):
        with pytest.raises(UserError, match=said):
            Checks().prompts(path, "--data.prompts", config, training)
    stages = tmp_path / "stages.yaml"  # rows of domains that are not drawn do not matter
    stages.write_text("stages: [{prompts: [{file: p.jsonl, domain: math}]}]")
    check_prompts(read_schedule(stages).sources, config)


@pytest.mark.parametrize("answer", ["NaN", "nan", float("nan"), "null", "<NA>", r"\boxed{NaN}", " N/A "])
def test_what_stands_for_a_missing_answer_is_none(answer: object) -> None:
    with pytest.raises(UserError, match="stands for one that is missing"):
        check_answers([("f.jsonl:1", "math", answer)], {})
    for given in ("NaN", "nan", "null", "0"):
        reward = verifier_for("math").score(ScoreRequest("math", None, rf"\boxed{{{given}}}", answer))
        assert reward.value == 0, reward
