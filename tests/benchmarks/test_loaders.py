"""Each loader on rows written in the public form, and the pitfalls of each."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.benchmarks import choices
from megatron_ring.benchmarks.code_sets import Window
from megatron_ring.benchmarks.problem import Grade, Loaded, Problem
from megatron_ring.benchmarks.rows import RowError, small
from megatron_ring.benchmarks.table import BENCHMARKS, PUBLISHED, SUITES, benchmark_of, load
from megatron_ring.benchmarks.thinking import scored_text
from megatron_ring.errors import UserError
from megatron_ring.rewards.calls import read_calls
from megatron_ring.rewards.code_formats import read_tests


def read(name: str, *rows: dict[str, Any], window: str | None = None) -> Loaded:
    benchmark = benchmark_of(name, Window.parse(window, "--window") if window else None)
    return load(benchmark, [(f"file:{number}", small(row)) for number, row in enumerate(rows, start=1)])


def one(name: str, *rows: dict[str, Any]) -> Problem:
    (problem,) = read(name, *rows).problems
    return problem


def grade(name: str, problem: Problem, response: str) -> Grade:
    score = BENCHMARKS[name].score
    assert score is not None
    found = score(problem, response)
    assert found is not None
    return found


MATH_ROWS: list[dict[str, Any]] = [
    {"id": 60, "problem": "p", "answer": "033", "solution": "s", "year": "2024"},
    {"Problem": "p", "Answer": 33},
    {"question": "p", "answer": "33"},
    {"prompt": [{"role": "user", "content": "p"}], "label": "33.0"},
    {"prompt": [{"role": "user", "content": "p"}], "reward_model": {"ground_truth": "33", "style": "rule"}},
    {"origin_prompt": "p", "gold_answer": "33"},
    {"problem": "p", "target": r"\boxed{33}"},
    {"problem": "p", "answer": 33.0},
    {"problem": "p", "solution": r"So it is $\boxed{033}$."},
]


@pytest.mark.parametrize("row", MATH_ROWS)
def test_aime_in_every_dialect(row: dict[str, Any]) -> None:
    problem = one("aime-2024", row)
    assert problem.answer == "33" and problem.prompt.startswith("p\n") and r"\boxed{}" in problem.prompt


@pytest.mark.parametrize("answer", ["1.5", "1000", "-3", "x", True, [1, 2]])
def test_aime_refuses_what_is_no_answer_of_it(answer: Any) -> None:
    with pytest.raises(RowError, match="file:1"):
        read("aime-2025", {"problem": "p", "answer": answer})


def test_repeated_rows_are_left_out_and_contradictions_refused() -> None:
    loaded = read(
        "aime-2024", {"problem": "p", "answer": "1"}, {"problem": "p ", "answer": 1}, {"problem": "q", "answer": 2}
    )
    assert len(loaded.problems) == 2 and loaded.notes == ["1 rows left out: repeated"]
    with pytest.raises(RowError, match=r"file:2: the problem of file:1 has another answer here: '385', '384'"):
        read("aime-2024", {"problem": "p", "answer": "385"}, {"problem": "p", "answer": "384"})


def test_gsm8k_and_a_missing_column() -> None:
    assert one("gsm8k", {"question": "q", "answer": "1+1\n#### 1,002"}).answer == "1,002"
    with pytest.raises(RowError, match=r"file:1: the column 'problem' .* is missing; the columns are text"):
        read("math-500", {"text": "x", "answer": "3"})


GPQA = {"Question": "Which?", "Correct Answer": "right\n", "Incorrect Answer 1": "w1", "Incorrect Answer 2": "w2",
        "Incorrect Answer 3": "w3 [title]", "Record ID": "rec1"}  # fmt: skip


def test_gpqa_orders_options_by_the_question_alone() -> None:
    first = one("gpqa-diamond", GPQA)
    others = [{**GPQA, "Question": f"Which {i}?", "Record ID": str(i)} for i in range(40)]
    again = read("gpqa-diamond", *others, GPQA).problems[-1]
    assert first.prompt == again.prompt and first.answer == again.answer
    assert f"{first.answer}) right\n" in first.prompt
    letters = {problem.answer for problem in read("gpqa-diamond", *others).problems}
    assert letters == set("ABCD")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("… Answer: B", "B"), ("**Answer: (C)**", "C"), (r"Answer: $\boxed{D}$", "D"), (r"\boxed{\text{A}}", "A"),
        ("The answer is (B).", "B"), ("Answer: A\nno, rather\nAnswer: C", "C"), ("so\n**D**", "D"),
        (r"\boxed{B) 5 cm}", "B"),
        ("the answer is a good one", None), ("Answer: E", None), ("", None), ("Answer: Because", None),
        ("Answer:\n\nB", "B"),
        ("final answer is \\textbf{C}", "C"),
    ],
)  # fmt: skip
def test_letters(response: str, letter: str | None) -> None:
    assert choices.letter_of(response, 4) == letter


def test_arc_labels_and_counts() -> None:
    row = {"id": "x", "question": "q", "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    problem = one("arc-c", row)
    assert problem.answer == "C" and grade("arc-c", problem, "Answer: D").given is None
    five = {**row, "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "E"}
    assert grade("arc-c", one("arc-c", five), "Answer: E").value == 1
    with pytest.raises(RowError, match="none of the labels"):
        read("arc-c", {**row, "answerKey": "D"})


def test_mmlu_pro_super_gpqa_and_musr() -> None:
    row = {
        "question_id": 7,
        "question": "q",
        "options": ["a", "b", "c"],
        "answer": "B",
        "answer_index": 1,
        "category": "law",
    }
    problem = one("mmlu-pro", row)
    assert (problem.id, problem.answer, problem.category) == ("7", "B", "law")
    with pytest.raises(RowError, match="'answer' is C and 'answer_index' is 1"):
        read("mmlu-pro", {**row, "answer": "C"})
    wide = {"uuid": "u", "question": "q", "options": [str(i) for i in range(10)], "answer": "9", "answer_letter": "J"}
    assert one("supergpqa", wide).answer == "J"
    story = {"narrative": "n", "question": "q", "choices": "['Ann', 'Bob']", "answer_index": 1, "answer_choice": "Bob"}
    assert one("musr", story).answer == "B"


@pytest.mark.parametrize("written", ["__import__('os').system('touch evaluated')", "[x for x in (1, 2)]", "('a' * 10)[0]"])
def test_literals_are_never_evaluated(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RowError, match="file:1: the column 'choices' is neither JSON nor a Python literal"):
        read("musr", {"narrative": "n", "question": "q", "choices": written, "answer_index": 0})
    with pytest.raises(RowError, match="'metadata'"):
        read("simpleqa", {"metadata": written, "problem": "p", "answer": "a"})
    with pytest.raises(RowError, match="'answer'"):
        read("theoremqa", {"Question": "q", "Answer": written, "Answer_type": "float"})
    assert read_calls(f"[f(x={written})]") is None
    assert not (tmp_path / "evaluated").exists()


def live_row(private: Any) -> dict[str, Any]:
    public = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    return {"question_id": "a", "question_content": "Double it.", "platform": "atcoder",
            "contest_date": "2024-08-01T00:00:00",
            "starter_code": "", "difficulty": "easy", "public_test_cases": public, "private_test_cases": private,
            "metadata": "{}"}  # fmt: skip


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Hostile:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("run",)


def test_livecodebench_unpacks_texts_and_refuses_classes(capsys: pytest.CaptureFixture[str]) -> None:
    tests = json.dumps([{"input": "3", "output": "6", "testtype": "stdin"}])
    assert len(read_tests(one("livecodebench", live_row(packed(tests))).answer).cases) == 2
    with pytest.raises(RowError, match=r"file:1: .*refers to builtins.print"):
        read("livecodebench", live_row(packed(Hostile())))
    assert "run" not in capsys.readouterr().out


def test_livecodebench_window_includes_both_ends() -> None:
    days = ["2024-07-31", "2024-08-01", "2025-01-31", "2025-02-01"]
    rows = [{**live_row("[]"), "question_id": day, "contest_date": f"{day}T23:59:00"} for day in days]
    loaded = read("livecodebench", *rows, window="2024-08-01:2025-01-31")
    assert [problem.id for problem in loaded.problems] == days[1:3]
    assert loaded.notes == ["2 rows left out: outside the window 2024-08-01:2025-01-31"]
    for wrong in ("2024-08-01", "2025-01-01:2024-01-01", "a:b"):
        with pytest.raises(UserError, match="--window"):
            Window.parse(wrong, "--window")


def test_codeforces_takes_checkers_and_names_what_it_cannot_judge() -> None:
    row = {"id": "1/A", "contest_id": "1", "index": "A", "title": "t", "description": "d", "time_limit": 1.5, "rating": 1350,
           "official_tests": [{"input": "1", "output": "1"}], "official_tests_complete": True, "input_mode": "stdio",
           "examples": [{"input": "1", "output": "1"}], "generated_checker": None, "interaction_format": None}  # fmt: skip
    loaded = read(
        "codeforces", row, {**row, "id": "1/B", "generated_checker": "print(1)"},
        {**row, "id": "1/C", "input_mode": "file"}, {**row, "id": "1/D", "interaction_format": "ask"},
        {**row, "id": "2/D", "interaction_format": "ask"}, {**row, "id": "1/E", "generated_checker": "print 1"},
        {**row, "official_tests_complete": False},
    )  # fmt: skip
    plain, checked = loaded.problems
    assert plain.category == "1200+" and "Time limit: 1.5 s a test" in plain.prompt and "any is accepted" not in plain.prompt
    assert plain.answer == {"format": "tests", "tests": row["official_tests"], "time_limit": 3.0}
    assert checked.answer == {**plain.answer, "checker": "print(1)"} and "any is accepted" in checked.prompt
    assert read_tests(checked.answer).checker == "print(1)" and read_tests(plain.answer).checker is None
    assert loaded.notes == [
        "1 rows left out: that read and write files (1/C)", "2 rows left out: that are interactive (1/D, 2/D)",
        "1 rows left out: whose checker is no Python that can be read (1/E)",
        "1 rows left out: without all of their official tests",
    ]  # fmt: skip
    for wrong in ({"time_limit": "soon"}, {"official_tests": [{"input": "1"}]}):
        with pytest.raises(RowError, match=f"the column '{next(iter(wrong))}'"):
            read("codeforces", {**row, **wrong})


def test_bbh_keeps_brackets_and_reads_each_kind() -> None:
    def right(target: Any, response: str) -> float:
        return grade("bbh", one("bbh", {"input": "i", "target": target}), response).value

    assert right("] ) }", "So the answer is ])}.") == 1 and right("] ) }", "So the answer is ] }") == 0
    assert right("(A)", "So the answer is (A).") == 1 and right("(A)", "So the answer is B") == 0
    assert right("(B)", "So the answer is **B**") == 1
    assert right("True", "so the answer is true.") == 1 and right(False, "So the answer is False") == 1
    assert right("No", "So the answer is no.") == 1 and right("valid", "So the answer is invalid") == 0
    assert right("apple bear cat", "So the answer is apple bear cat.") == 1 and right("-14", r"\boxed{-14}") == 1
    assert grade("bbh", one("bbh", {"input": "i", "target": "1"}), "nothing").given is None


def test_a_plus_form_has_tests_of_its_own() -> None:
    plain = {"task_id": 2, "prompt": "Write it.", "test_list": ["assert f(1) == 1"], "test_imports": []}
    assert one("mbpp-plus", {**plain, "test": "assert f(2) == 2"}).answer["tests"] == "assert f(2) == 2"
    with pytest.raises(RowError, match="'test' is missing"):
        read("mbpp-plus", plain)
    release = {"task_id": "Mbpp/2", "prompt": "p", "entry_point": "f", "base_input": [[1]], "plus_input": [[2]], "test": "t"}
    for name in ("mbpp-plus", "humaneval-plus"):
        with pytest.raises(RowError, match="give the parquet file of evalplus"):
            read(name, release)


def test_drop_f1() -> None:
    row = {"query_id": "q", "passage": "p", "question": "q",
           "answer": {"number": "", "date": {}, "spans": ["New York", "Rome"]},
           "validated_answers": {"number": ["", "3"], "date": [{}, {}], "spans": [["Rome"], []]}}  # fmt: skip
    problem = one("drop", row)
    assert problem.answer == [["New York", "Rome"], ["Rome"], ["3"]]
    assert grade("drop", problem, "Answer: the Rome | New-York").value == 1
    assert grade("drop", problem, "Answer: 3.0").value == 1 and grade("drop", problem, "Answer: 4").value == 0
    assert grade("drop", problem, "Answer: York").value == 0.33 and grade("drop", problem, "?").given is None
    assert one("drop", {"context": "c", "completion": "x", "ref_text": "3|three"}).answer == [["3"], ["three"]]
    pairs = [
        {"query_id": f"q{n}", "question": f"q{n}?", "answer": {"number": str(n), "date": {}, "spans": []}} for n in (1, 2)
    ]
    passage = {"id": "nfl_1", "passage": "p", "wiki_url": "u", "qa_pairs": pairs}  # as its authors' own file has it
    found = read("drop", passage, row).problems
    assert [(problem.id, problem.answer, problem.category) for problem in found[:2]] == [
        ("q1", [["1"]], "nfl_1"), ("q2", [["2"]], "nfl_1")]  # fmt: skip
    assert found[1].prompt.startswith("p\n\nq2?") and len(found) == 3
    with pytest.raises(RowError, match="'qa_pairs' is no list"):
        read("drop", {**passage, "qa_pairs": {"q": 1}})


def test_arc_agi_wants_every_test() -> None:
    row = {"id": "t", "train": [{"input": [[1]], "output": [[2]]}],
           "test": [{"input": [[3]], "output": [[4, 5]]}, {"input": [[6]], "output": [[7]]}]}  # fmt: skip
    problem = one("arc-agi", row)
    assert grade("arc-agi", problem, "[[1]] then [[4,5]] and [ [ 7 ] ]").value == 1
    assert grade("arc-agi", problem, "[[4, 5]] [[8]]").value == 0 and grade("arc-agi", problem, "[[7]]").given is None
    unsolved = {**row, "test": [{"input": pair["input"]} for pair in row["test"]]}
    assert one("arc-agi", unsolved, {"id": "file", "t": [[[4, 5]], [[7]]], "u": [[[1]]]}) == problem  # Kaggle's two files
    for wrong in ({"id": "file", "u": [[[1]]]}, {"id": "file", "t": [[[1]]]}):
        with pytest.raises(RowError, match="give the folder that holds the file of solutions too"):
            read("arc-agi", unsolved, wrong)
    with pytest.raises(RowError, match="no grid"):
        read("arc-agi", {**row, "train": [{"input": [[1], [2, 3]], "output": [[1]]}]})


def test_ifeval_drops_none_alone() -> None:
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
           "kwargs": [{"num_words": None}, {"num_words": 0, "relation": "at least", "keyword": None}]}  # fmt: skip
    assert one("ifeval", row).answer["kwargs"] == [{}, {"num_words": 0, "relation": "at least"}]
    assert one("ifeval", row).variants["loose"]["mode"] == "loose"


def bfcl(kind: str, response: str, truth: Any = None) -> float:
    functions = [{"name": "a.b", "parameters": {"type": "dict", "properties": {"x": {"type": "integer"}}}}, {"name": "g"}]
    rows = [{"id": kind, "question": [[{"role": "user", "content": "do"}]], "function": functions}]
    if truth is not None:
        rows.append({"id": kind, "ground_truth": truth})
    return grade("bfcl-live", one("bfcl-live", *rows), response).value


def test_bfcl_calls() -> None:
    truth = [{"a.b": {"x": [1], "y": ["New York", ""], "z": [[1, 2], ""]}}]
    good = ["[a.b(x=1)]", "a_b(x=1)", "```python\n[a.b(x=1, y='new york')]\n```", "[a.b(x=1, z=[1,2])]", "Sure: [a.b(x=1)]."]
    bad = ["[a.b(x=2)]", "[a.b()]", "[a.b(1)]", "[a.b(x=1, w=1)]", "[a.b(x=1.0)]", "[g(x=1)]", "none", "[a.b(x=True)]",
           "[a.b(x=1), a.b(x=1)]", "[a.b(x=" + "(" * 5000 + ")]"]  # fmt: skip
    assert [bfcl("live_simple_0-0", text, truth) for text in good] == [1.0] * 5
    assert [bfcl("live_simple_0-0", text, truth) for text in bad] == [0.0] * 10
    two = [{"a.b": {"x": [1]}}, {"g": {"s": ["t"]}}]
    assert bfcl("live_parallel_multiple_1", "[g(s='T'), a.b(x=1)]", two) == 1
    assert bfcl("live_irrelevance_1", "None of them fits.") == 1 and bfcl("live_irrelevance_1", "[g()]") == 0
    assert bfcl("live_relevance_1", "[g()]") == 1 and bfcl("live_relevance_1", "no") == 0
    with pytest.raises(RowError, match="possible_answer"):
        bfcl("live_simple_1", "x")


def test_theoremqa_types() -> None:
    def problem(answer: Any, kind: str) -> Problem:
        return one("theoremqa", {"Question": "q", "Answer": answer, "Answer_type": kind, "Picture": None})

    cases = [(True, "bool", "True", 1), ("False", "bool", r"\text{true}", 0), ("(b)", "option", "(B)", 1), 
             (4, "integer", "4", 1),
             ("4", "integer", "4.01", 0), (2.0, "float", "2.05", 1), ("2.0", "float", "2.2", 0),
             ("[1, 2]", "list of integer", "[1, 2]", 1), ([0.5, 1.5], "list of float", r"0.5, \frac{3}{2}", 1)]  # fmt: skip
    for answer, kind, given, value in cases:
        assert grade("theoremqa", problem(answer, kind), rf"\boxed{{{given}}}").value == value, (answer, kind, given)
    with pytest.raises(UserError, match="1 rows left out: with a picture"):
        read("theoremqa", {"Question": "q", "Answer": 1, "Answer_type": "integer", "Picture": "x.png"})


def test_olympiadbench_tolerance_and_what_is_left_out() -> None:
    row = {"id": 1, "question": "q", "final_answer": ["$1.5$,$2$"], "error": "0.1,0.01", "is_multiple_answer": True,
           "answer_type": "Numerical", "subject": "Physics", "unit": "m", "modality": "Text-only",
           "question_type": "Open-ended"}  # fmt: skip
    problem = one("olympiadbench-physics", {**row, "final_answer": ["1.5", "2"]})
    assert grade("olympiadbench-physics", problem, r"\boxed{1.55, 2.005}").value == 1
    assert grade("olympiadbench-physics", problem, r"\boxed{1.55, 2.02}").value == 0
    left = [{**row, "image_1": "x"}, {**row, "question_type": "Theorem proof"}, {**row, "final_answer": None}, row]
    with pytest.raises(UserError, match=r"with images.*that ask for a proof.*without a final answer"):
        read("olympiadbench-physics", *left[:3])


def test_judged_sets_are_read() -> None:
    assert one("simpleqa", {"metadata": "{'topic': 'Art', 'urls': []}", "problem": "p", "answer": "a"}).category == "Art"
    graded = one("alignbench", {"question_id": 1, "category": "c", "subcategory": "翻译", "question": "q", "reference": "r"})
    assert graded.metadata["dimensions"][-2:] == ("creativity", "richness")
    assert one("alignbench", {"question_id": 1, "category": "c", "question": "q", "reference": "r"}).answer == "r"
    assert one("fofo", {"id": 1, "instruction": "i", "domain": "d", "format": "XML"}).metadata["format"] == "XML"
    assert one("arena-hard", {"question_id": "u", "cluster": "c", "turns": [{"content": "hello"}]}).prompt == "hello"


def test_only_the_text_after_the_thinking_is_scored() -> None:
    assert scored_text("<think>1</think>2</think> 3") == "3" and scored_text("plain") == "plain"
    assert scored_text("<think> never") is None and scored_text("never", opened=True) is None


def test_the_tables_know_each_other() -> None:
    for suite in SUITES.values():
        assert set(suite.names) <= BENCHMARKS.keys()
    assert all(set(scores) <= set(SUITES[paper].names) for paper, scores in PUBLISHED.items())
    with pytest.raises(UserError, match="unknown benchmark 'aime': use one of math-500"):
        benchmark_of("aime")


@pytest.mark.parametrize("text", ["[[" * 50_000, "[[1]," * 40_000, "Answer: (" * 30_000, r"\boxed{" * 30_000, "|" * 100_000])
def test_hostile_responses_take_no_time(text: str) -> None:
    grid = one("arc-agi", {"train": [{"input": [[1]], "output": [[1]]}], "test": [{"input": [[1]], "output": [[1]]}]})
    drop = one("drop", {"context": "c", "ref_text": "x"})
    for name, problem in (("arc-agi", grid), ("drop", drop), ("gpqa-diamond", one("gpqa-diamond", GPQA))):
        assert grade(name, problem, text).value == 0
    assert not read_calls(text)
