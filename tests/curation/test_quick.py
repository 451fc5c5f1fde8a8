"""What is quick decides as what is slow does: patterns behind plain texts, English by its words, tokens of ASCII."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ring.curation import rules, subjects, text
from megatron_ring.curation.guarded import Guarded
from megatron_ring.curation.language import is_plain_english, language_of
from megatron_ring.curation.repair import repaired
from tests.conftest import SHARED
from tools.planted_rows import math_rows

GUARDED = {name: value for name, value in vars(rules).items() if isinstance(value, Guarded)} | subjects._WORDS


@pytest.mark.parametrize("name", GUARDED)
def test_every_match_holds_a_needle(name: str) -> None:
    guarded = GUARDED[name]

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.from_regex(guarded.pattern))
    def check(said: str) -> None:
        found = guarded.search(said)
        assert found is not None and found.span() == guarded.pattern.search(said).span()  # type: ignore[union-attr]
        assert [match[0] for match in guarded.finditer(said)] == [match[0] for match in guarded.pattern.finditer(said)]

    check()


PIECES = ("Tom's", "f'(x)", "well-known", " - ", "1,234", "12,34", "{,}000", "3.50", ".5", "$x_1$", r"\frac12", r"\text{cm}",
          "\\", "&", "<=", "!", "%", "A", " ", "\n", "e", "Problem 3. ", "é", "−", "数", "''", "9a")  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_tokens_of_ascii(said: str) -> None:
    found = text._ASCII_TOKEN.findall(said.lower()) if said.isascii() else []
    assert not said.isascii() or found == text._TOKEN.findall(said.casefold())


FOREIGN = [
    "Een boer heeft in de morgen 12 koeien en of hij was in the war for alle and have von den are die han is on of that",
    "Ein Mann hat 12 Autos and die Frau hat 3. Wie viele Autos haben sie zusammen, wenn er 2 verkauft?",
    "Une boulangerie vend 40 croissants le matin et 30 le soir. Combien en vend-elle dans une semaine ?",
    "Una tienda vende 40 panes por la manana y 30 por la tarde. Cuantos panes vende en una semana?",
    "Seorang petani memiliki 12 sapi dan 30 kambing. Berapa banyak hewan yang dia miliki sekarang?",
    "小明有12个苹果，妈妈又给了他5个苹果。How many are there?",
]


@pytest.mark.parametrize("said", FOREIGN[1:])
def test_other_languages_are_not_taken_for_english(said: str) -> None:
    assert not is_plain_english(said)


@pytest.mark.skipif(not (SHARED / "data" / "gsm8k_train.jsonl").is_file(), reason="GSM8K is not beside the project")
def test_english_tells_itself() -> None:
    texts = [row["problem"] for row in math_rows(SHARED / "data" / "gsm8k_train.jsonl")[:2000]]
    assert sum(map(is_plain_english, texts)) > 0.85 * len(texts)
    assert {(language_of(said) or ("en",))[0] for said in texts} == {"en"}


@given(st.text(alphabet="ab1 \n\r\t<p>&;#answer", max_size=60))
def test_repair_leaves_no_white_space_behind(said: str) -> None:
    found, _ = repaired(said)
    assert found == found.strip() and "\r" not in found and not re.search(r"[^\S\n]\n|\n{3}", found)
