"""Scores and results from the pool that training uses, on real files where they are beside the project."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_ring.benchmarks.code_sets import solution_block
from megatron_ring.benchmarks.problem import Problem
from megatron_ring.benchmarks.result import describe, measure
from megatron_ring.benchmarks.rows import small
from megatron_ring.benchmarks.scoring import Outcome, answer_key, same_answer, submit
from megatron_ring.benchmarks.table import BENCHMARKS, load
from megatron_ring.rewards import RewardPool
from tests.conftest import SHARED


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(workers=2) as workers:
        yield workers


def real_rows(name: str) -> list[dict[str, object]]:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{name} is not beside the project")
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def outcome(pool: RewardPool, name: str, problem: Problem, response: str, **more: bool) -> Outcome:
    return submit(BENCHMARKS[name], problem, response, pool, sample=0, tokens=1, **more).result()


@pytest.mark.slow
def test_every_canonical_solution_of_humaneval_passes(pool: RewardPool) -> None:
    rows = real_rows("humaneval.jsonl.gz")
    problems = load(BENCHMARKS["humaneval"], [(str(i), small(row)) for i, row in enumerate(rows)]).problems
    written = [solution_block(f"{row['prompt']}{row['canonical_solution']}") for row in rows]
    scorer = BENCHMARKS["humaneval"]
    pending = [
        submit(scorer, problem, f"<think>…</think>{text}", pool, sample=0, tokens=1)
        for problem, text in zip(problems, written, strict=True)
    ]
    found = measure(scorer, problems, [item.result() for item in pending])
    assert (found["score"], found["responses"], found["unparsed"]) == (1.0, 164, 0)


def test_every_rationale_of_gsm8k_is_right(pool: RewardPool) -> None:
    rows = real_rows("gsm8k_train.jsonl")
    loaded = load(BENCHMARKS["gsm8k"], [(str(i), small(row)) for i, row in enumerate(rows)])
    texts = {" ".join(str(row["question"]).split()): str(row["answer"]) for row in rows}
    scores = []
    for problem in loaded.problems:
        rationale, _, final = texts[" ".join(problem.prompt.rsplit("\n\n", 1)[0].split())].rpartition("####")
        scores.append(outcome(pool, "gsm8k", problem, f"{rationale}\\boxed{{{final.strip()}}}").score)
    assert scores and set(scores) == {1.0}


def test_thinking_and_cut_responses(pool: RewardPool) -> None:
    problem = Problem("p", "q", "4", "math")
    assert outcome(pool, "math-500", problem, r"<think>\boxed{4}</think>\boxed{5}").score == 0
    assert outcome(pool, "math-500", problem, r"<think>\boxed{5}</think>\boxed{4}").score == 1
    cut = outcome(pool, "math-500", problem, r"<think>\boxed{4}")
    assert (cut.score, cut.truncated, cut.parsed) == (0, True, False)
    assert outcome(pool, "math-500", problem, r"\boxed{4}", opened=True).truncated
    assert not outcome(pool, "math-500", problem, "four").parsed


def test_ifeval_is_scored_strictly_and_loosely(pool: RewardPool) -> None:
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
           "kwargs": [{}, {}]}  # fmt: skip
    (problem,) = load(BENCHMARKS["ifeval"], [("f:1", row)]).problems
    found = outcome(
        pool, "ifeval", problem, "Sure, here:\nthis is a plain sentence that is written in small english letters"
    )
    assert found.score == 0 and found.variants == {"loose": 1.0, "instructions": 0.0}


def test_judged_responses_wait_and_are_excluded(pool: RewardPool) -> None:
    (problem,) = load(BENCHMARKS["fofo"], [("f:1", {"id": 1, "instruction": "i", "domain": "d"})]).problems
    found = outcome(pool, "fofo", problem, "text")
    measured = measure(BENCHMARKS["fofo"], [problem], [found])
    assert found.score is None and measured["score"] is None and measured["no_verdict"] == 1


def test_a_result_counts_apart_and_excludes_what_has_no_verdict() -> None:
    problems = [Problem(str(i), "q", "4", "math", category=str(i % 2)) for i in range(4)]
    common = {"benchmark": "math-500", "reason": "", "tokens": 10}
    rows = [Outcome(id="0", sample=0, score=1.0, given="4", truncated=False, parsed=True, category="0", **common),
            Outcome(id="1", sample=0, score=0.0, given=None, truncated=True, parsed=False, category="1", **common),
            Outcome(id="2", sample=0, score=None, given=None, truncated=False, parsed=True, category="0", **common),
            Outcome(id="3", sample=0, score=0.0, given=None, truncated=False, parsed=False, category="1", **common),
    ]  # fmt: skip
    found = measure(BENCHMARKS["math-500"], problems, rows)
    assert found["score"] == pytest.approx(1 / 3) and found["standard_error"] == pytest.approx(1 / 3)
    assert [found[name] for name in ("truncated", "unparsed", "no_verdict", "tokens")] == [1, 1, 1, 40]
    assert found["by_category"]["0"] == {"score": 1.0, "standard_error": None, "problems": 1}
    told = describe(BENCHMARKS["math-500"], problems, {"file": "f", "sha256": "0", "rows": 4, "notes": []})
    other = describe(BENCHMARKS["math-500"], [*problems[:3], Problem("3", "q", "5")], {})
    assert told["problems_sha256"] != other["problems_sha256"] and told["prompt_form"] == 2


def test_equal_answers_have_equal_keys() -> None:
    assert answer_key(r"\boxed{033}") == answer_key(r"\boxed{33}") == answer_key(r"\boxed{33.0}") == "33"
    assert answer_key("none") is None and same_answer(r"\frac{1}{2}", "0.5") and not same_answer("1", "2")


def test_files_of_every_kind(tmp_path: Path) -> None:
    from megatron_ring.data.public_rows import public_files, read_public_rows, sha256_of
    from megatron_ring.errors import UserError

    (tmp_path / "a.csv").write_text('\ufeffQuestion,Answer\n"two\nlines, and a comma",3\n', encoding="utf-8")
    (tmp_path / "b.json").write_text('{"t1": {"train": [], "test": []},\n "t2": {"train": []}}')
    (tmp_path / "c.json").write_text('{"examples": [{"input": "i", "target": "t"}]}')
    (tmp_path / "d.json").write_text('{"train": [],\n "test": []}')
    (tmp_path / "e.json").write_text('{"x": 1}\n{"x": 2}\n')
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b'{"x": 3}\n'))
    rows = {file.name: [row for _, row in read_public_rows(file)] for file in public_files(tmp_path)}
    assert rows == {
        "a.csv": [{"Question": "two\nlines, and a comma", "Answer": "3"}],
        "b.json": [{"id": "t1", "train": [], "test": []}, {"id": "t2", "train": []}],
        "c.json": [{"task": "c", "id": "c-1", "input": "i", "target": "t"}],
        "d.json": [{"id": "d", "train": [], "test": []}],
        "e.json": [{"x": 1}, {"x": 2}],
        "f.jsonl.gz": [{"x": 3}],
    }
    assert len(sha256_of(public_files(tmp_path))) == 64
    with pytest.raises(UserError, match="no such file or folder"):
        public_files(tmp_path / "nothing")
    (tmp_path / "bad.csv").write_bytes(b"a,b\n\xff,1\n")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_public_rows(tmp_path / "bad.csv"))
