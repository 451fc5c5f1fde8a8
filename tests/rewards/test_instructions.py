"""Scoring as a whole: references, strict and loose, thinking, properties, hostile input."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.errors import UserError
from megatron_ring.rewards import Reward, ScoreRequest
from megatron_ring.rewards.instructions import CHECKS, quick_score, read_task, score
from megatron_ring.rewards.instructions import sentences as splitting
from megatron_ring.rewards.instructions.scoring import MAX_RESPONSE_CHARACTERS
from megatron_ring.rewards.instructions.sentences import by_rules, sentences
from megatron_ring.rewards.instructions.text import answer_part, bullets, holds_word, occurrences, words

# Arguments with which every kind of instruction can be asked.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "keywords:existence": {"keywords": ["a", "(a+)+$", "[[", "\x00"]},
    "keywords:frequency": {"keyword": "(a|a)*b", "frequency": 1, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["(a+)+$", "\\", "a" * 256, "*" * 256]},
    "keywords:letter_frequency": {"letter": "a", "let_frequency": 3, "let_relation": "less than"},
    "language:response_language": {"language": "en"},
    "length_constraints:number_words": {"num_words": 2, "relation": "at least"},
    "length_constraints:number_sentences": {"num_sentences": 2, "relation": "less than"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 2},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "a"},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 1},
    "combination:repeat_prompt": {"prompt_to_repeat": "a" * 1000},
    "startend:end_checker": {"end_phrase": "a"},
    "change_case:capital_word_frequency": {"capital_frequency": 1, "capital_relation": "at least"},
    "ring:bullet_count_range": {"minimum": 1, "maximum": 3},
    "ring:word_count_range": {"minimum": 1, "maximum": 3},
    "ring:sentences_start_with": {"letter": "a"},
    "ring:numbered_list": {"num_items": 2},
    "ring:unique_words": {"num_words": 2},
    "ring:sentence_length": {"max_words": 3},
    "ring:line_count": {"num_lines": 2},
}
# Detecting a language takes milliseconds whatever the text; the properties leave it out.
WITHOUT_LANGUAGE = sorted(name for name in CHECKS if not name.startswith(("language:", "change_case:english")))
MARKUP = st.text(alphabet="aAb1 \n\r*-#.!?\"'[]<>,{}(é。\x00\x0b\u2028", max_size=60)


def reference(*names: str, **options: str) -> dict[str, Any]:
    return {"instruction_id_list": list(names), "kwargs": [ARGUMENTS.get(name) for name in names], **options}


def scored(response: str, answer: Any) -> Reward:
    return score(ScoreRequest("instructions", None, response, answer))


def test_the_reason_names_the_first_violation_with_its_numbers() -> None:
    answer = reference("punctuation:no_comma", "length_constraints:number_words", "ring:line_count")
    names = answer["instruction_id_list"]
    detail = {"instructions": [[name, True] for name in names]}
    assert scored("a b\nc", answer) == Reward(1.0, "3 of 3 instructions followed", detail)
    reason = "length_constraints:number_words: 1 words, at least 2 wanted (1 of 3 followed)"
    detail = {"instructions": [[names[0], True], [names[1], False], [names[2], False]]}
    assert scored("a", answer) == Reward(0.0, reason, detail)
    assert "the response is empty" in scored(" \r\n", answer).reason
    assert "\n" not in scored("x\ny", reference("combination:repeat_prompt")).reason


@pytest.mark.parametrize(
    ("answer", "words_of_reason"),
    [
        ("a", "must be an object"),
        ({}, "instruction_id_list"),
        ({"instruction_id_list": [], "kwargs": []}, "instruction_id_list"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "kwargs must be a list of 1"),
        (reference("punctuation:no_commas"), "unknown instruction 'punctuation:no_commas'"),
        ({"instruction_id_list": [["x"]], "kwargs": [None]}, "unknown instruction"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "kwargs must be an object"),
        (reference("punctuation:no_comma", mode="lose"), "mode must be 'strict' or 'loose'"),
        (reference("punctuation:no_comma", mod="loose"), "unknown key 'mod'"),
        (reference("punctuation:no_comma", thinking="hide"), "thinking must be"),
    ],
)
def test_a_bad_reference_is_said(answer: Any, words_of_reason: str) -> None:
    reward = scored("text", answer)
    assert reward.value == 0 and words_of_reason in reward.reason
    assert quick_score(ScoreRequest("instructions", None, "text", answer)) == reward
    with pytest.raises(UserError, match=re.escape(words_of_reason)):
        read_task(answer)


@pytest.mark.parametrize(
    ("name", "kwargs", "problem"),
    [
        ("length_constraints:number_words", {"num_words": 3}, "'relation' is missing"),
        ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, "'less than' or 'at least'"),
        ("length_constraints:number_words", {"num_words": True, "relation": "at least"}, "whole number"),
        ("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"}, "whole number"),
        ("length_constraints:number_words", {"num_words": float("nan"), "relation": "at least"}, "whole number"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "at least 0"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
            "exceeds",
        ),
        ("keywords:existence", {"keywords": []}, "list of texts"),
        ("keywords:existence", {"keywords": "a"}, "list of texts"),
        ("keywords:existence", {"keywords": [" "]}, "not blank"),
        ("keywords:existence", {"keywords": ["a" * 257]}, "at most 256 characters"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "one character"),
        ("language:response_language", {"language": "xx"}, "'language' 'xx' is not one of"),
        ("punctuation:no_comma", {"num_words": 3}, "unknown argument 'num_words': it takes none"),
        ("ring:word_count_range", {"minimum": 3, "maximum": 2}, "exceeds"),
    ],
)
def test_bad_arguments_are_named(name: str, kwargs: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=f"^instruction {name}: .*{re.escape(problem)}"):
        read_task({"instruction_id_list": [name], "kwargs": [kwargs]})


def test_nulls_are_no_arguments_and_whole_floats_are_integers() -> None:
    kwargs = {"num_words": 2.0, "relation": "at least", "keywords": None, "language": None}
    assert scored("a b", {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [kwargs]}).value == 1


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("detectable_format:json_format", 'Sure:\n{"a": 1}'),
        ("detectable_format:json_format", '{"a": 1}\nAnything else?'),
        ("detectable_format:json_format", 'Sure:\n**{"a": 1}**\nBye'),
        ("startend:quotation", '**"a"**'),
        ("length_constraints:nth_paragraph_first_word", "**A** b\n\nc"),
        ("punctuation:no_comma", "Sure, here:\nfine"),
    ],
)
def test_loose_forgives_first_line_last_line_and_asterisks(name: str, response: str) -> None:
    assert scored(response, reference(name)).value == 0
    assert scored(response, reference(name, mode="loose")).value == 1


def test_thinking_is_not_judged_unless_it_is_wanted() -> None:
    answer = reference("punctuation:no_comma", "startend:quotation")
    assert scored('<think>a, b</think>\n\n"fine"', answer).value == 1
    assert scored('a, b</think>"fine"\n', answer).value == 1
    assert scored('<think>a, b</think>\n\n"fine"', {**answer, "thinking": "keep"}).value == 0
    assert scored('a</think>x, y</think>"fine"', answer).value == 0, "the first end counts"
    assert "empty" in scored('<think>"fine"', answer).reason
    assert answer_part("no thinking") == "no thinking"


@settings(max_examples=200, deadline=None)
@given(MARKUP, st.sampled_from(WITHOUT_LANGUAGE))
def test_loose_never_rejects_what_strict_accepts(response: str, name: str) -> None:
    strict, loose = (scored(response, reference(name, mode=mode)).value for mode in ("strict", "loose"))
    assert strict <= loose
    quick = quick_score(ScoreRequest("instructions", None, response, reference(name)))
    assert quick is None or quick.value == strict


@given(st.text(alphabet="aé_1 -'\n.你", max_size=40))
def test_words_are_runs_of_word_characters(text: str) -> None:
    spaced = "".join(character if character.isalnum() or character == "_" else " " for character in text)
    assert words(text) == spaced.split()


@given(st.text(alphabet="ab+. ", min_size=1, max_size=4).filter(str.strip), st.text(alphabet="ab+. ", max_size=30))
def test_keywords_agree_with_brute_force(word: str, text: str) -> None:
    found = [i for i in range(len(text)) if text.startswith(word, i)]
    last, number = -len(word), 0
    for start in found:
        if start >= last + len(word):
            last, number = start, number + 1
    assert occurrences(word.upper(), text) == number
    padded = f" {text} "
    free = [
        i
        for i in found
        if not (word[0].isalnum() and padded[i].isalnum())
        and not (word[-1].isalnum() and padded[i + len(word) + 1].isalnum())
    ]
    assert holds_word(word, text) == bool(free)


@given(MARKUP)
def test_bullets_agree_with_a_pattern(text: str) -> None:
    assert len(bullets(text)) == sum(bool(re.match(r"\s*(?:-|\*[^*\s]|\*\s+\S)", line)) for line in text.split("\n"))


SENTENCES = [
    ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
    ("Dr. Smith met Mrs. Wu at Acme Inc. in May.", ["Dr. Smith met Mrs. Wu at Acme Inc. in May."]),
    ("J. R. R. Tolkien wrote it. Yes.", ["J. R. R. Tolkien wrote it.", "Yes."]),
    ('He said "Go!" and left. Fine.', ['He said "Go!" and left.', "Fine."]),
    ("I live in the U.S. It is big.", ["I live in the U.S.", "It is big."]),
    ("Pi is 3.14. See www.a.com now.", ["Pi is 3.14.", "See www.a.com now."]),
    ("Wait... what? See Fig. 3 and No. 4. Done.", ["Wait... what?", "See Fig. 3 and No. 4.", "Done."]),
    ("你好。今天天气好！真的吗？", ["你好。", "今天天气好！", "真的吗？"]),
    ("नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
    ("1. First\n2. Second", ["1. First\n2. Second"]),
    ("* item one\n* item two", ["* item one\n* item two"]),
    ("Well… yes. (Really.) Good.", ["Well… yes.", "(Really.)", "Good."]),
    (" \n ", []),
]


@pytest.mark.parametrize("punkt", [True, False], ids=["nupunkt", "rules"])
@pytest.mark.parametrize(("text", "expected"), SENTENCES)
def test_sentences_both_ways(text: str, expected: list[str], punkt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not punkt:
        monkeypatch.setattr(splitting, "PUNKT_CHARACTERS", -1)  # every text is too long
    assert sentences(text) == expected


@given(st.text(alphabet='aA.!? "\n。', max_size=60))
def test_sentences_lose_nothing_but_white_space(text: str) -> None:
    assert "".join("".join(by_rules(text)).split()) == "".join(text.split())


# Repeated to a length at which anything quadratic would not end.
HOSTILE = {
    "brackets": "[",
    "closed": "]",
    "angles": "<<",
    "angles and text": "<<a>",
    "asterisks": "*",
    "bold": "**a",
    "line": "a",
    "lines": "- a\n",
    "numbered": "1. a\n",
    "initials": "A. ",
    "stops": "a. ",
    "shouting": "!",
    "dots": ". ",
    "stops and quotes": "!\"'",
    "spaces": " ",
    "breaks": "\r\n",
    "quotes": '"',
    "nul": "\x00",
    "surrogates": "\ud800a ",
    "combining": "\u0301",
    "hyphens": "a-",
    "json": '{"a":',
    "digits": "9",
    "thinking": "<think>",
    "sections": "Section ",
    "postscripts": "p. ",
}


def decide_hostile(piece: str, size: int, mode: str) -> None:
    text = "x" + piece * (size // len(piece)) + "y"
    for name in sorted(CHECKS, key=lambda name: "sentence" not in name):  # a text is split once for all that want sentences
        reward = scored(text, reference(name, mode=mode))
        assert reward.value in (0.0, 1.0) and len(reward.reason) < 500 and "\n" not in reward.reason


@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.timeout(120)
def test_hostile_responses_are_decided(piece: str) -> None:
    decide_hostile(piece, 40_000, "loose")
    decide_hostile(piece, splitting.PUNKT_CHARACTERS - 2, "strict")


@pytest.mark.slow
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.timeout(300)
def test_a_hostile_megabyte_is_decided(piece: str) -> None:
    decide_hostile(piece, 1_000_000, "strict")


def test_deep_nesting_is_no_json() -> None:
    for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
        assert "nested too deeply" in scored(text, reference("detectable_format:json_format")).reason


def test_a_response_past_the_cap_is_not_looked_at() -> None:
    reward = scored("a" * (MAX_RESPONSE_CHARACTERS + 1), reference("punctuation:no_comma"))
    assert reward.value == 0 and str(MAX_RESPONSE_CHARACTERS) in reward.reason
