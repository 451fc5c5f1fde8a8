"""Responses labelled by hand for each of the 25 public kinds of instruction: (id, kwargs, followed, not followed)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from megatron_ring.rewards import ScoreRequest
from megatron_ring.rewards.instructions import CHECKS, score

LEAST, LESS = "at least", "less than"
ENGLISH = "The weather was lovely this morning, so we walked along the river and talked about our plans for the summer."
FRENCH = "Le temps était magnifique ce matin, alors nous avons marché le long de la rivière en parlant de nos projets."
GERMAN = "Das Wetter war heute Morgen herrlich, also gingen wir am Fluss entlang und sprachen über unsere Pläne."
RUSSIAN = "Сегодня утром была прекрасная погода, и мы гуляли вдоль реки и говорили о наших планах на лето."
KANNADA = "ಇಂದು ಬೆಳಿಗ್ಗೆ ಹವಾಮಾನ ಚೆನ್ನಾಗಿತ್ತು ಆದ್ದರಿಂದ ನಾವು ನದಿಯ ಉದ್ದಕ್ಕೂ ನಡೆದೆವು"
CHINESE = "今天早上天气很好，我们沿着河边散步，谈论我们夏天的计划。"

LABELLED: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["mom", "C++"]},
        ["Mom writes C++.", "one moment, c++20", "MOM\r\nc++", "`c++` for my mom\x00"],
        ["Mom writes C.", "ccc mom", "C++ only", "m-o-m C++", "mом C++ in Cyrillic"],
    ),
    (
        "keywords:existence",
        {"keywords": ["straße", "日本"]},
        ["STRASSE 日本語", "Straße日本"],
        ["Strase 日本", "日 本 straße"],
    ),
    (
        "keywords:frequency",
        {"keyword": "war", "frequency": 3, "relation": LEAST},
        ["war War WAR", "warwarwar", "toward war, warm"],
        ["war war", "w ar war war", "World wa"],
    ),
    (
        "keywords:frequency",
        {"keyword": "a.b", "frequency": 2, "relation": LESS},
        ["a.b", "axb ayb azb"],
        ["a.b A.B", "a.b.a.b", "a.b a.\u200bb", "a.b \u0430.b"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "C++", "(x)"]},
        ["rocket rocks bedrock", "I like C", "(y) x", "a rock_band", "r<o>ck & roll", "5 * ro * ck"],
        [
            "Rock!",
            "hard-rock",
            "use C++20.",
            "f(x)",
            "“rock”",
            "a\nrock\nb",
            "a _rock_",
            "r**o**ck",
            "ro&shy;ck",
            "r&#111;ck",
            "ro<b></b>ck",
            "ro<!-- -->ck",
            "ro\u200bck",
            "r\u043eck",
            "r\u0336o\u0336ck",
        ],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_frequency": 2, "let_relation": LESS},
        ["a big one", "T", "one t"],
        ["Tt", "the cat", "t\r\nt", "t \u0442", "t \uff54"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 4, "let_relation": LEAST},
        ["####", "#a #b #c #d", "## code\n## more"],
        ["###", "no tags", "＃＃＃＃"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Ä", "let_frequency": 1, "let_relation": LEAST},
        ["ä", "Äpfel"],
        ["a", "Apfel"],
    ),
    ("language:response_language", {"language": "kn"}, [KANNADA, KANNADA + " 42"], [ENGLISH, "12345", RUSSIAN]),
    (
        "language:response_language",
        {"language": "fr"},
        [FRENCH, FRENCH.upper(), FRENCH * 300],
        [GERMAN, "!?", FRENCH + GERMAN * 9],
    ),
    ("language:response_language", {"language": "zh"}, [CHINESE, CHINESE * 2], [RUSSIAN, FRENCH]),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": LEAST},
        ["one two three four", "don't well-known", "a\r\nb\r\nc\r\nd", "été là où ça", "1 2 3.5"],
        ["one two three", "... !!! ??? ---", "a_b_c_d", "你好 世界"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": LESS}, ["one two", "a-b", "**"], ["a b c", "it's me"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": LEAST},
        [
            "One. Two. Three.",
            "Really? Yes! Good.",
            "He left. She stayed. We slept",
            "你好。今天好！是吗？",
            "A dog.\r\nA cat.\r\nA cow.",
        ],
        [
            "One. Two.",
            "Dr. Smith met Mrs. Wu. Fine.",
            "It costs $3.50. Ok.",
            "e.g. this one",
            "Wait...what... no",
            "one\n\ntwo\n\nthree",
        ],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": LESS},
        ["Only one here.", "No stop"],
        ["A dog. A cat.", "Go! Now!"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***\na\n***\nb\n***", "a\r\n***\r\nb"],
        ["a\n\nb", "a\n***\n***\nb", "a***b***c", "a", "a\n******\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Rain"},
        ["a\n\nrain fell", "a\r\n\r\nRAIN, again", 'a\n\n"Rain" it is', "a\n\nRain's over\n\n", "a\n\n\nrain"],
        ["rain\n\nb", "a\nrain", "a\n\nb\n\nrain", "a\n\nRainy day", "a\n\n\n\nrain", "a\n\n**Rain** fell"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[a] [b]", "[[a] b] [c]", "[]\n[]", "`x[0]` and y[1]", "[address]\r\n[name]"],
        ["[a]", "[a b", "[a\nb] [c]", "(a) (b)", "[[[[", "［a］［b］"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. call me", "p. s. yes", "text P.S.", "x\r\n\r\nP.S.: y", "P.P.S. two"],
        ["PS call me", "P.S call", "Bye.", "help.s. no"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["a\nP.P.S. b", "p. p. s"], ["P.S. b", "PPS"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\r\n- b", "intro\n  * a\n\t- b\nend", "*a\n-b", "* a\n  more of a\n- b\n**bold**"],
        ["* a", "a * b * c", "* a\n* b\n* c", "1. a\n2. b", "**a**\n**b**", "* a\n* b\n---"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "My answer is no.", '"My answer is maybe."\n', "Well. My answer is yes. Truly."],
        ["Yes.", "my answer is yes.", "My answer is yes", "My answer is perhaps."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b*", "*a*\r\n*b*", "***a***", "*a * b*c*"],
        ["*a*", "** ** and *b*", "*a\nb* *c", "_a_ _b_", "****", "* a\n* b"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        [
            "SECTION 1\na\nSECTION 2\nb",
            "SECTION1 SECTION2",
            "**SECTION 1**\r\nx\r\n**SECTION 2**",
            "SECTION 1 SECTION 2 SECTION 3",
        ],
        ["Section 1\nSection 2", "SECTION 1", "SECTION A\nSECTION B", "SECTION  1\nSECTION  2"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Part (", "num_sections": 1},
        ["Part (1)", "Part ( 1"],
        ["Part 1", "Part"],
    ),
    (
        "detectable_format:json_format",
        {},
        [
            '{"a": [1, {"b": null}]}',
            '```json\n{"a": 1}\n```',
            "```\r\n[]\r\n```",
            ' "text" ',
            '{"a": "\\u4f60 }{ ["}',
            "9" * 5000,
        ],
        [
            "{'a': 1}",
            '{"a": 1,}',
            'Here: {"a": 1}',
            "```json\n```",
            '{"a": NaN}',
            "[" * 100_000,
            '{"a": 1} {"b": 2}',
            '{"a\x00": 1}',
        ],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Ode>>\ntext", "a <<b c>> d", "<<<x>>>", "x\r\n<<été>>\r\n", "<<a>> <<>>"],
        ["<Ode>", "<< >>", "<<>>", "<<a\nb>>", ">>a<<", "<<<<", "«Ode»"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******\na ****** b ******", "a\r\n******\r\nb", "*a* ****** **a**"],
        ["a", "a\n******\na ", "a ****** b ****** c", "a ****** ****** b", "a *** b", "******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write (two) lines.\nNo commas."},
        ["Write (two) lines.\nNo commas.\nHere", "  write (TWO) lines.\r\nno commas.", "Write (two) lines.\nNo commas.x"],
        [
            "Sure! Write (two) lines.\nNo commas.",
            "Write (two) lines.",
            "Write (two) lines. No commas.",
            '"Write (two) lines.\nNo commas."',
        ],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions?"},
        ["Hi. Any other questions?", "any other QUESTIONS?  \r\n", '"Hi. Any other questions?"', "Many other questions?"],
        [
            "Any other questions? No.",
            "Any other questions",
            "Any other questions?*",
            "Any  other questions?",
            "Any other questions？",
        ],
    ),
    ("startend:end_checker", {"end_phrase": 'say "hi"'}, ['Now say "hi"', 'SAY "HI"\n'], ["say hi", 'say "hi".']),
    (
        "startend:quotation",
        {},
        ['"a"', ' "a" b "c"\r\n', '""', '"a\n\nb"'],
        ['"', '"a', 'a"', "'a'", "“a”", '"a".', "```\n'a'\n```"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 3, "capital_relation": LEAST},
        ["I AM HERE", "NASA's COVID-19 U.S.", "**STOP!** (NOW) “GO”", "ÉTÉ ÜBER ОН", "A,B;C"],
        ["I AM here", "Nasa Usa Covid", "1 2 3", "iPHONE eBAY mRNA", "AB CD-e F"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": LESS},
        ["no caps", "123 你好"],
        ["I am", "ok: OK"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper(), ENGLISH.upper() + "\r\n42!", ENGLISH.upper() * 200],
        [ENGLISH, FRENCH.upper(), "12345", RUSSIAN.upper(), ENGLISH.upper() + " ok"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH.lower(), "```\n" + ENGLISH.lower() + "\n```", "1. " + ENGLISH.lower()],
        [ENGLISH, GERMAN.lower(), "…", "I " + ENGLISH.lower(), CHINESE],
    ),
    (
        "punctuation:no_comma",
        {},
        ["no commas here; none", "一，二、三", "1.000", "a\r\nb"],
        ["a, b", "1,000", "```\nf(a,b)\n```", "a\n,\nb"],
    ),
]


def cases() -> Iterator[Any]:
    for instruction_id, kwargs, followed, violated in LABELLED:
        for value, responses in ((1.0, followed), (0.0, violated)):
            for response in responses:
                yield pytest.param(
                    instruction_id, kwargs, response, value, id=f"{instruction_id}-{value:g}-{response[:20]!a}"
                )


@pytest.mark.parametrize(("instruction_id", "kwargs", "response", "value"), list(cases()))
def test_strict_verdict(instruction_id: str, kwargs: dict[str, Any], response: str, value: float) -> None:
    answer = {"instruction_id_list": [instruction_id], "kwargs": [kwargs]}
    reward = score(ScoreRequest("instructions", None, response, answer))
    assert reward.value == value, reward.reason
    assert "\n" not in reward.reason and (value == 1 or reward.reason.startswith(f"{instruction_id}: "))


def test_every_public_kind_has_both_labels() -> None:
    public = {instruction_id for instruction_id in CHECKS if not instruction_id.startswith("ring:")}
    assert len(public) == 25 and public == {entry[0] for entry in LABELLED}
    assert all(len(followed) >= 2 and len(violated) >= 2 for _, _, followed, violated in LABELLED)
    assert sum(len(followed) + len(violated) for _, _, followed, violated in LABELLED) >= 120
