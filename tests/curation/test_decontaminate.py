"""Benchmark problems are found in other spellings, in longer texts and in part; common phrases are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.curation.options import Decontaminate
from megatron_ring.errors import UserError
from tests.curation.conftest import Curated, problem, write_jsonl

BENCH = [
    {"problem": "Let $x$ and $y$ be real numbers with $x^2 + y^2 = 25$ and $x + y = 7$. Find $xy$.", "answer": "12"},
    {"problem": "Weng earns 12 dollars an hour for babysitting. Yesterday she just did 50 minutes of babysitting. How "
                "much did she "
     "earn?", "answer": "10"},
    {"problem": "What is $7!$?", "answer": "5040"},
]  # fmt: skip
FOUND = [
    "Let \\( u \\) and \\(v\\) be real numbers with \\(u^{2}+v^{2}=25\\) and $u+v=7$. Find $uv$.".replace("uv", "u v"),
    "PROBLEM 3. Weng earns $12$ dollars an hour   for babysitting.\nYesterday she just did $50$ minutes of "
    "babysitting. How much did "
    "she earn?",
    "Solve this one: Weng earns 12 dollars an hour for babysitting. Yesterday she just did 50 minutes of babysitting. "
    "How much did "
    "she earn? Explain.",
    "Weng earns 12 dollars an hour for babysitting. Yesterday she just did 50 minutes of it. What is her pay?",
    "what is 7 !",
]
CLEAN = [
    "Tom sells 20 pens for 3 dollars each and buys 4 books. How much money did he earn in total?",
    "What is $8!$?",
    "First compute what is 7! and then add the number of days in May.",
    "Let $x$ and $y$ be real numbers. The sum of their cubes is 91 and their product is 30. How large is their sum?",
    "x",
]


@pytest.fixture
def step(tmp_path: Path) -> Decontaminate:
    return Decontaminate(benchmarks=(write_jsonl(tmp_path / "bench.jsonl", BENCH),))


def test_found(step: Decontaminate, curated: Callable[..., Curated]) -> None:
    found = curated([problem(text, "0") for text in FOUND], step)
    assert set(found.reasons.values()) == {"benchmark:bench"} and len(found.reasons) == len(FOUND), found.kept
    assert [entry["evidence"].rpartition(" of ")[2] for entry in found.ledger] == [
        f"bench.jsonl:{n}" for n in (1, 2, 2, 2, 3)
    ]


def test_not_found(step: Decontaminate, curated: Callable[..., Curated]) -> None:
    assert curated([problem(text, "0") for text in CLEAN], step).reasons == {}


def test_the_same_answer_needs_less(step: Decontaminate, curated: Callable[..., Curated]) -> None:
    text = (
        "Mia gets 9 coins. Yesterday she just did 50 minutes of babysitting for a neighbour in the next street. "
        "How rich is she?"
    )
    found = curated([problem(text, "10"), problem(text, "11")], step)
    assert found.reasons == {"s-1": "benchmark:bench"} and found.ledger[0]["evidence"].endswith("the answers agree")


def test_a_solution_that_holds_the_problem(step: Decontaminate, curated: Callable[..., Curated]) -> None:
    row = problem("Answer the question below.", solutions=[{"text": f"It says: {BENCH[1]['problem']}", "language": None}])
    assert curated([row], step).reasons == {"s-1": "benchmark:bench"}


def test_any_match(tmp_path: Path, curated: Callable[..., Curated]) -> None:
    text = (
        "Ann likes to read. Yesterday she just did 50 minutes of babysitting and then read 3 books with 4 pages. "
        "How many pages?"
    )
    for strict in (False, True):
        step = Decontaminate(benchmarks=(write_jsonl(tmp_path / "bench.jsonl", BENCH),), any=strict)
        assert bool(curated([problem(text)], step).reasons) == strict


FILES: dict[str, Any] = {
    "questions alone": [{"question": BENCH[1]["problem"]}],
    "capitals": [{"Problem": BENCH[1]["problem"], "Answer": 10}],
    "verl": [{"data_source": "math", "prompt": [{"role": "user", "content": BENCH[1]["problem"]}], "ability": "math",
              "reward_model": {"ground_truth": "10"}}],
    "multiple choice": [{"question": BENCH[1]["problem"], "options": ["9", "10"], "answer": "B", "answer_index": 1}],
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_forms_of_benchmarks(name: str, tmp_path: Path, curated: Callable[..., Curated]) -> None:
    path = write_jsonl(tmp_path / "aime_2024.test.jsonl", FILES[name])
    found = curated([problem(FOUND[1])], Decontaminate(benchmarks=(path,)))
    assert found.reasons == {"s-1": "benchmark:aime_2024"}


def test_a_benchmark_without_problems(tmp_path: Path, curated: Callable[..., Curated]) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"foo": "bar"}) + "\n")
    with pytest.raises(UserError, match=r"b.jsonl: no problems"):
        curated([problem(FOUND[0])], Decontaminate(benchmarks=(path,)))
