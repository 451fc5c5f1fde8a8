"""Public files as they are downloaded, read for curation: domain, problem, answer, solutions and what is said of them."""

from __future__ import annotations

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_ring.curation.options import Clean
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source
from megatron_ring.errors import UserError
from tests.curation.conftest import Curated, write_jsonl

TESTS = {"inputs": ["1\n"], "outputs": ["2\n"]}
STARTS_WITH = "Read a number"

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "BigMath": (
        {"problem": "P?", "answer": "5", "source": "orca", "domain": ["Mathematics -> Algebra"], "llama8b_solve_rate": 0.25},
        {"domain": "math", "answer": "5", "metadata": {"llama8b_solve_rate": 0.25, "original_source": "orca"}},
    ),
    "BigMath without a domain": (
        {"problem": "P?", "answer": "5", "source": "orca", "domain": None, "llama8b_solve_rate": None},
        {"domain": "math", "answer": "5"},
    ),
    "OpenR1-Math": (
        {"problem": "P?", "solution": "It is $5$.", "answer": "5", "problem_type": "Algebra",
         "question_type": "math-word-problem",
         "source": "olympiads", "uuid": "u-1", "generations": ["<think>…</think>"], "correctness_math_verify": [True]},
        {"domain": "math", "answer": "5", "solutions": 1, "metadata": {"question_type": "math-word-problem"}},
    ),
    "NuminaMath-1.5": (
        {"problem": "P?", "solution": "s", "answer": "5", "question_type": "MCQ", "problem_is_valid": "Yes",
         "solution_is_valid": "Yes", "source": "amc", "synthetic": False},
        {"domain": "math", "answer": "5", "metadata": {"question_type": "MCQ", "problem_is_valid": "Yes"}},
    ),
    "NuminaMath-CoT": (
        {"source": "aops", "problem": "P?", "solution": "so $\\boxed{5}$", "messages": [{"role": "user", "content": "P?"}]},
        {"domain": "math", "answer": "5", "solutions": 1},
    ),
    "DeepScaleR": ({"problem": "P?", "answer": "5", "solution": "s"}, {"domain": "math", "answer": "5", "solutions": 1}),
    "GSM8K": ({"question": "P?", "answer": "2+3\n#### 5"}, {"domain": "math", "answer": "5", "solutions": 1}),
    "MATH": (
        {"problem": "P?", "solution": "\\boxed{5}", "level": "Level 3", "type": "Algebra"},
        {"domain": "math", "answer": "5", "metadata": {"level": "Level 3", "type": "Algebra"}},
    ),
    "DAPO-Math": (
        {"data_source": "math_dapo", "prompt": [{"role": "user", "content": "P?"}], "ability": "MATH",
         "reward_model": {"ground_truth": "5", "style": "rule"}, "extra_info": {"index": "9a"}},
        {"domain": "math", "prompt": "P?", "answer": "5", "metadata": {"source_id": "9a", "original_source": "math_dapo"}},
    ),
    "Skywork-OR1": (
        {"data_source": "train-math-numinamath", "prompt": [{"role": "user", "content": "P?"}], "ability": "math",
         "reward_model": {"ground_truth": '["5"]'}, "extra_info": {"index": 3, "model_difficulty": {"R1-7B": 4}}},
        {"domain": "math", "prompt": "P?", "answer": "5", "metadata": {"model_difficulty": {"R1-7B": 4}}},
    ),
    "AoPS with solutions": (
        {"problem": "P?", "solutions": ["no end", "so $\\boxed{5}$"], "post_id": 12},
        {"domain": "math", "answer": "5", "solutions": 2, "metadata": {"post_id": 12}},
    ),
    "OpenMathReasoning": (
        {"problem": "P?", "expected_answer": "5", "problem_type": "has_answer_extracted", "generated_solution": "s"},
        {"domain": "math", "answer": "5", "solutions": 1},
    ),
    "APPS": (
        {"problem_id": 7, "question": STARTS_WITH, "solutions": '["print(2)"]', "input_output": json.dumps(TESTS),
         "difficulty": "interview", "url": "u", "starter_code": ""},
        {"domain": "code", "answer": {"input_output": TESTS}, "solutions": 1, "metadata": {"source_id": "7"}},
    ),
    "TACO": (
        {"question": STARTS_WITH, "solutions": '["print(2)", "print(1+1)"]', "input_output": json.dumps(TESTS),
         "tags": "['dp']",
         "difficulty": "EASY", "starter_code": "", "source": "codeforces"},
        {"domain": "code", "answer": {"input_output": TESTS}, "solutions": 2, "metadata": {"original_source": "codeforces"}},
    ),
    "CodeContests": (
        {"name": "1_A", "description": STARTS_WITH, "public_tests": {"input": ["1\n"], "output": ["2\n"]},
         "private_tests": {"input": [], "output": []}, "generated_tests": {"input": [], "output": []},
         "solutions": {"language": [1, 3, 2], "solution": ["print 2", "print(2)", "int main(){}"]}, "source": 2},
        {"domain": "code", "solutions": 2, "metadata": {"source_id": "1_A"}},
    ),
    "open-r1/codeforces": (
        {"id": "1/A", "title": "T", "description": STARTS_WITH, "input_format": "n", "output_format": "n", "time_limit": 2.0,
         "interaction_format": None, "note": None, "examples": [{"input": "1", "output": "2"}], "rating": 800,
         "tags": ["math"],
         "official_tests": [{"input": "1\n", "output": "2\n"}], "official_tests_complete": True, "input_mode": "stdio",
         "generated_checker": "print(1)"},
        {"domain": "code",
         "answer": {"tests": [{"input": "1\n", "output": "2\n"}], "time_limit": 4.0, "checker": "print(1)"},
         "metadata": {"rating": 800, "official_tests_complete": True}},
    ),
    "LiveCodeBench": (
        {"question_title": "T", "question_content": STARTS_WITH, "platform": "atcoder", "question_id": "a1",
         "starter_code": "",
         "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}]),
         "private_test_cases": "[]",
         "metadata": "{}", "contest_date": "2024-08-01T00:00:00"},
        {"domain": "code", "metadata": {"source_id": "a1", "platform": "atcoder"}},
    ),
    "SYNTHETIC-1 of mathematics": (
        {"problem_id": "vfm_1", "task_type": "verifiable_math", "prompt": "P?", "gold_standard_solution": "s",
         "verification_info": "{'ground_truth': '5'}", "source": "numina", "metadata": "{}"},
        {"domain": "math", "answer": "5", "solutions": 1, 
         "metadata": {"source_id": "vfm_1", "task_type": "verifiable_math"}},
    ),
    "SYNTHETIC-1 of code": (
        {"problem_id": "vfc_1", "task_type": "verifiable_code", "prompt": STARTS_WITH, "gold_standard_solution": "print(2)",
         "verification_info": json.dumps({"language": "python", 
             "test_cases": [{"type": "stdin_stdout", "input": "1", "output": "2"}]})},
        {"domain": "code", "answer": {"tests": [{"input": "1", "output": "2"}], "language": "python"}, "solutions": 1},
    ),
    "SYNTHETIC-2 with a function": (
        {"problem_id": "p", "task_type": "prime_rl_code", "prompt": STARTS_WITH,
         "verification_info": json.dumps({
             "test_cases": [{"type": "function_call", "fn_name": "f", "input": [1], "output": 2}]})},
        {"domain": "code", "answer": {"fn_name": "f", "tests": [{"args": [1], "expected": 2}]}},
    ),
    "reasoning-gym": (
        {"question": "How many legs?", "answer": "6", 
         "metadata": json.dumps({"source_dataset": "leg_counting", "source_index": 0})},
        {"domain": "logic/exact", "answer": {"text": "6"}},
    ),
    "HumanEval": (
        {"task_id": "H/0", "prompt": "def f():\n", "canonical_solution": "    return 2\n", "entry_point": "f",
         "test": "def check(candidate):\n    assert candidate() == 2\n"},
        {"domain": "code", "solutions": 1, "metadata": {"source_id": "H/0"}},
    ),
}  # fmt: skip


def read(path: Path, out: Path, *steps: Any, **source: Any) -> Curated:
    run_recipe(Recipe((Source("s", (path,), **source),), steps), out, 1, lambda text: None)
    return Curated(out)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_form(name: str, kind: str, tmp_path: Path) -> None:
    row, wanted = FORMS[name]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        write_jsonl(path, [row])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    [found] = read(path, tmp_path / "out").kept
    assert found["id"] == "s-1" and found["metadata"]["source"] == "s"
    for key, value in wanted.items():
        if key == "metadata":
            assert value.items() <= found["metadata"].items()
        elif key == "solutions":
            assert len(found["solutions"]) == value
        else:
            assert found[key] == value
    assert found["prompt"].startswith(wanted.get("prompt", "")) and found["prompt"]


UNSUPPORTED = {
    "a broken checker": {**FORMS["open-r1/codeforces"][0], "generated_checker": "print 1"},
    "files": {**FORMS["open-r1/codeforces"][0], "input_mode": "file"},
    "a dialogue": {**FORMS["open-r1/codeforces"][0], "interaction_format": "ask"},
    "no answer": {"prompt": "P?", "task_type": "llm_judgeable", "verification_info": "{}"},
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_verified(name: str, tmp_path: Path) -> None:
    good = FORMS["open-r1/codeforces" if "official_tests" in UNSUPPORTED[name] else "SYNTHETIC-1 of mathematics"][0]
    found = read(write_jsonl(tmp_path / "r.jsonl", [good, UNSUPPORTED[name]]), tmp_path / "out")
    assert found.reasons == {"s-2": "unsupported_task"}


def test_columns_of_any_file(tmp_path: Path) -> None:
    rows = [{"q": {"text": "P?"}, "final": 5, "way": "so \\boxed{5}", "w": datetime.date(2026, 1, 2)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    fields = {"prompt": "q.text", "answer": "final", "solution": "way"}
    [found] = read(tmp_path / "r.parquet", tmp_path / "out", fields=fields, domain="math", metadata={"level": 2}).kept
    assert (found["prompt"], found["answer"], found["metadata"]["level"]) == ("P?", 5, 2)
    assert found["solutions"] == [{"text": "so \\boxed{5}", "language": None}]


def test_damaged_first_rows_do_not_decide(tmp_path: Path) -> None:
    rows = [
        {"problem": "P?", "answer": None, "solution": "s"},
        *[{"problem": f"{n}?", "answer": "5", "solution": "s"} for n in range(5)],
    ]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    path.write_text("{broken\n" + path.read_text() + "[1]\n\n" + '{"problem": " ", "answer": "1"}\n')
    found = read(path, tmp_path / "out")
    assert found.reasons == {"s-1": "malformed", "s-2": "missing_answer", "s-8": "malformed", "s-10": "missing_problem"}
    assert "r.jsonl:1: not JSON at column 2" in found.ledger[0]["evidence"] and found.dropped[0]["raw"] == "{broken"


def test_packed_files_and_lists(tmp_path: Path) -> None:
    rows = [{"problem": f"What is {n}+1?", "answer": str(n + 1)} for n in range(3)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    source = Source("s", (tmp_path / "a.jsonl.gz", tmp_path / "b.json"))
    run_recipe(Recipe((source,), (Clean(),)), tmp_path / "out", 1, lambda text: None)
    assert [row["id"] for row in Curated(tmp_path / "out").kept] == ["s.1-1", "s.1-2", "s.1-3", "s.2-1", "s.2-2", "s.2-3"]


WRONG = {
    "of no known form": ('{"foo": "P", "bar": "5"}\n', {},
                         "r.jsonl:1: of no known form; the row has foo, bar: name the columns"),
    "no such column": ('{"foo": "P", "bar": "5"}\n', {"fields": {"prompt": "q"}, "domain": "math"},
                       "the column 'q' of 'prompt' is missing"),
    "no domain": ('{"foo": "P", "bar": "5"}\n', {"fields": {"prompt": "foo", "answer": "bar"}}, "no row names its domain"),
    "no objects": ("hello\n", {}, "no JSON object among the first"),
    "empty": ("", {}, "no rows"),
    "all broken": ('{"problem": "P?", "answer": "", "solution": "s"}\n', {}, "none of its rows can be read"),
    "an unknown domain": ('{"id": 1, "domain": "maths", "prompt": "P is what?", "answer": "5"}\n', {},
                          "unknown domain 'maths'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    text, source, message = WRONG[name]
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "r.jsonl", tmp_path / "out", Clean(), **source)
