"""Summaries, tool calls and form gates against brute force, and what would cheat them."""

from __future__ import annotations

import ast
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards.interface import Reward, ScoreRequest
from megatron_ring.rewards.registry import VERIFIERS
from megatron_ring.rewards.scorer import check_answers

SOURCE = "The old mill in Oslo was sold in 1987 for 1,200 crowns. Its new owner, a baker from Lima, turned it into a school."


def judged(domain: str, response: str, answer: Any) -> Reward:
    return VERIFIERS[domain].score(ScoreRequest(domain, None, response, answer))


SUMMARIES: list[tuple[str, dict[str, Any], float, str]] = [
    ("A baker bought it in 1987.", {"max_words": 8, "facts": ["1987", ["baker", "owner"], "school"]}, 2 / 3, "not 'school'"),
    ("<think>1987 school</think>A mill.", {"max_words": 8, "facts": ["1987", "school"]}, 0, "0 of 2"),
    ("It cost 1200 crowns.", {"max_words": 8, "facts": ["1,200 crowns"]}, 1, "1 of 1"),
    ("It cost 11200 crowns.", {"max_words": 8, "facts": ["1,200 crowns"]}, 0, "0 of 1"),
    ("crowns 1200", {"max_words": 8, "facts": ["1200 crowns"]}, 0, "0 of 1"),
    ("one two three", {"max_words": 2}, 0, "3 words, 1 to 2"),
    ("one", {"max_words": 9, "min_words": 2}, 0, "1 words, 2 to 9"),
    ("", {"max_words": 9}, 0, "0 words"),
    (SOURCE, {"max_words": 30, "facts": ["1987"], "source": SOURCE, "max_copied": 5}, 0, "more than 5 words"),
    ("mill in oslo WAS sold, in 1987", {"max_words": 30, "source": SOURCE, "max_copied": 6}, 0, "more than 6"),
    ("mill in oslo was sold in 1987", {"max_words": 30, "source": SOURCE, "max_copied": 7}, 1, "7 words"),
    ("mill in oslo was sold today", {"max_words": 30, "source": SOURCE, "max_overlap": 0.5}, 0, "2 of 3 runs"),
    ("in oslo was sold and then lost", {"max_words": 30, "source": SOURCE, "max_overlap": 0.5}, 1, "words"),
    ("a mill was sold " * 6, {"max_words": 40}, 0, "said again"),
    ("磨坊在1987年卖出", {"max_words": 20, "facts": ["1987", "卖出"]}, 1, "2 of 2"),
]


@pytest.mark.parametrize(("text", "rules", "value", "said"), SUMMARIES)
def test_summaries(text: str, rules: dict[str, Any], value: float, said: str) -> None:
    reward = judged("summary", text, rules)
    assert reward.value == pytest.approx(value) and said in reward.reason


@settings(max_examples=60, deadline=None)
@given(*[st.lists(st.sampled_from("pqrs"), min_size=1, max_size=14)] * 2, st.integers(1, 5))
def test_the_longest_copied_run_is_that_of_trying_all(words: list[str], source: list[str], limit: int) -> None:
    longest = max(
        end - begin
        for begin in range(len(words) + 1)
        for end in range(begin, len(words) + 1)
        if end == begin or any(source[at : at + end - begin] == words[begin:end] for at in range(len(source)))
    )
    rules = {"max_words": 20, "source": " ".join(source), "max_copied": limit, "max_repeated": 1}
    assert judged("summary", " ".join(words), rules).value == float(longest <= limit)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("x", "an object, not str"), ({}, "no 'max_words'"), ({"max_words": 0}, "from 1 to 10000"),
        ({"max_words": True}, "whole number"), ({"max_words": 2, "min_words": 3}, "exceed"),
        ({"max_words": 9, "facts": []}, "1 to 256"), ({"max_words": 9, "facts": ["..."]}, "is empty"),
        ({"max_words": 9, "facts": [["a", None]]}, "not NoneType"), ({"max_words": 9, "max_copied": 4}, "give the 'source'"),
        ({"max_words": 9, "source": "x y"}, "no limit of copying"), ({"max_words": 9, "source": " . "}, "text with words"),
        ({"max_words": 9, "max_overlap": 2}, "from 0 to 1"), ({"max_words": 9, "fact": ["x"]}, "unknown key 'fact'"),
    ],
)  # fmt: skip
def test_rules_of_no_use_are_refused(rules: Any, said: str) -> None:
    with pytest.raises(UserError, match="p.jsonl:4.*" + re.escape(said)):
        check_answers([("p.jsonl:4", "summary", rules)], {})
    assert said in judged("summary", "x", rules).reason


WEATHER = {"calls": [{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]}
BOTH = {"calls": [*WEATHER["calls"], {"name": "time", "arguments": {}}]}
BFCL = {"ground_truth": [{"weather": {"city": ["Oslo", "oslo city"], "days": [3, ""]}}]}


def block(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


OSLO = block("weather", city="Oslo", days=3)
CALLS: list[tuple[str, Any, float]] = [
    (OSLO, WEATHER, 1),
    (f"<think>{block('weather', city='Rome')}</think>Let me see. {OSLO}", WEATHER, 1),
    ("[weather(city='Oslo', days=3)]", WEATHER, 1),
    ("```python\n[weather(days=3.0, city='Oslo')]\n```", WEATHER, 1),
    (block("weather", city="oslo", days=3), WEATHER, 0),
    (block("weather", city="Oslo", days=3, unit="C"), WEATHER, 0),
    (block("weather", city="Oslo"), WEATHER, 0),
    (block("weather", city="Oslo", days="3"), WEATHER, 0),
    (
        block("weather", city="Oslo", days=True),
        {"calls": [{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}]},
        0,
    ),
    (OSLO + OSLO, WEATHER, 0),
    (OSLO + "<tool_call>", WEATHER, 0),
    (OSLO.replace("</tool_call>", ""), WEATHER, 0),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Rome", "city": "Oslo", "days": 3}}</tool_call>', WEATHER, 0),
    ('<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": NaN}}</tool_call>', WEATHER, 0),
    ("<tool_call>weather</tool_call>", WEATHER, 0),
    ("[weather(city='Os' + 'lo', days=3)]", WEATHER, 0),
    ("[weather('Oslo', 3)]", WEATHER, 0),
    ("[weather(city=open('x').read(), days=3)]", WEATHER, 0),
    ("weather in Oslo", WEATHER, 0),
    (block("time") + OSLO, BOTH, 1),
    (block("time") + OSLO, {**BOTH, "in_order": True}, 0),
    (OSLO + block("time"), {**BOTH, "in_order": True}, 1),
    (OSLO, [{"function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 3}'}}], 1),
    (OSLO, {"calls": []}, 0),
    ("[weather(city='Oslo')]", {"calls": []}, 0),
    ("I cannot look that up.", {"calls": []}, 1),
    ("<tool_call>{", {"calls": []}, 0),
    ("<think>[f(x=1)]</think> ", {"calls": []}, 0),
    ("[weather(city='OSLO city')]", BFCL, 1),
    ("[weather(city='Bern')]", BFCL, 0),
    (block("weather", city="Oslo", days=3), BFCL, 1),
]


@pytest.mark.parametrize(("text", "answer", "value"), CALLS)
def test_calls(text: str, answer: Any, value: float) -> None:
    assert judged("tool-calls", text, answer).value == value


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "", "1", "a\nb"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_both_ways_to_write_a_call_agree_with_equality(given_value: Any, wanted: Any) -> None:
    """Equality of Python, but that true is not 1."""

    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: typed(one) for key, one in value.items()}
        return [*map(typed, value)] if isinstance(value, list) else (isinstance(value, bool), value)

    answer = {"calls": [{"name": "f", "arguments": {"x": wanted}}]}
    expected = float(typed(given_value) == typed(wanted))
    for text in (block("f", x=given_value), f"[f(x={given_value!r})]"):
        assert judged("tool-calls", text, answer).value == expected
    assert ast.literal_eval(repr(given_value)) == given_value


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("x", "an object or a list"), ({}, "must have 'calls'"), ({"calls": [], "ground_truth": []}, "not both"),
        ({"calls": [{"arguments": {}}]}, "no object with a 'name'"),
        ({"calls": [{"name": "f", "arguments": "x"}]}, "is no JSON"),
        ({"calls": [{"name": "f", "arguments": []}]}, "are no object"), ({"ground_truth": []}, "1 to 64"),
        ({"ground_truth": [{"f": {"x": 1}}]}, "[choices]"), ({"calls": [], "in_order": 1}, "true or false"),
        ({"call": []}, "unknown key 'call'"),
        ({**BFCL, "functions": [{"name": "f", "parameters": ["x"]}]}, "a list of descriptions"),
    ],
)  # fmt: skip
def test_wanted_calls_of_no_use_are_refused(answer: Any, said: str) -> None:
    with pytest.raises(UserError, match="p.jsonl:5.*" + re.escape(said)):
        check_answers([("p.jsonl:5", "tool-calls", answer)], {})
    assert said in judged("tool-calls", "x", answer).reason


@pytest.mark.parametrize(
    ("domain", "text", "options", "value"),
    [
        ("format/json", '<think>x</think>{"a": 1}', {"keys": ["a"]}, 1),
        ("format/json", '```json\n{"a": 1}\n```', {"keys": ["a"]}, 1),
        ("format/json", '{"a": 1}', {"keys": ["b"]}, 0),
        ("format/json", "[1]", {"keys": ["a"]}, 0),
        ("format/json", "3", {}, 1),
        ("format/json", 'Here: {"a": 1}', {}, 0),
        ("format/json", "NaN", {}, 0),
        ("format/json", "", {}, 0),
        ("format/json", "[" * 100_000, {}, 0),
        ("format/repetition", "one two three four five", {}, 1),
        ("format/repetition", "so it is. " * 9, {}, 0),
        ("format/repetition", "<think>" + "so it is. " * 9 + "</think>5", {}, 0),
        ("format/repetition", "重复重复重复重复重复", {"words": 2}, 0),
        ("format/repetition", "", {}, 1),
        ("format/repetition", "a b a b", {"words": 2, "share": 0.34}, 1),
        ("format/repetition", "p q p q", {"words": 2, "share": 0.33}, 0),
    ],
)
def test_form_gates(domain: str, text: str, options: dict[str, Any], value: float) -> None:
    assert judged(domain, text, options).value == value


@pytest.mark.parametrize(
    ("domain", "options", "said"),
    [("format/json", {"keys": "a"}, "a list of texts"), ("format/repetition", {"words": 0}, "from 1 to 32"),
     ("format/repetition", {"share": "x"}, "from 0 to 1")],
)  # fmt: skip
def test_options_of_gates_are_checked(domain: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_answers([("p:1", domain, options)], {})


@pytest.mark.parametrize("depth", [200, 700, 5_000])
def test_deeply_nested_arguments_are_wrong_or_right_and_no_crash(depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for text in (f'<tool_call>{{"name": "f", "arguments": {{"x": {nested}}}}}</tool_call>', f"[f(x={nested})]"):
        for wanted in (WEATHER, BFCL, {"calls": []}):
            assert judged("tool-calls", text, wanted).value in (0, 1)


def test_hostile_texts_take_no_time() -> None:
    hostile = (
        "[" * 100_000,
        "<tool_call>" * 20_000,
        "[f(x=" + "(" * 15_000,
        "f(" * 9_000,
        f"[f(x={'9' * 19_000})]",
        "a " * 60_000,
    )
    rules = {"max_words": 10_000, "source": SOURCE * 500, "max_copied": 256}
    began = time.process_time()
    for text in hostile:
        assert judged("tool-calls", text, WEATHER).value == 0
        assert judged("summary", text, rules).value in (0, 1)
    assert time.process_time() - began < 10
