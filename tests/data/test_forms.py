"""Public files as they are downloaded: each form's rows, written as its publisher writes them, and what is read of them."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.fields import PROMPT_FIELDS, SFT_FIELDS, Fields
from megatron_ring.data.files import read_prompt_file, read_prompts, read_sft_file
from megatron_ring.errors import UserError
from megatron_ring.rewards.code_formats import read_tests
from megatron_ring.rewards.scorer import check_answers
from tests.conftest import SHARED

LCB_PRIVATE = base64.b64encode(
    zlib.compress(pickle.dumps(json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}])))
).decode()
TACO_TESTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})

# What a row is, then domain, prompt (its beginning), answer and id of what is read.
PROMPTS: dict[str, tuple[dict[str, Any], tuple[str, str, Any, str]]] = {
    "GSM8K": ({"question": "2+2?", "answer": "It is <<2+2=4>>4.\n#### 4"}, ("math", "2+2?", "4", "rows-1")),
    "DeepScaleR": ({"problem": "P", "answer": "\\frac12", "solution": "s"}, ("math", "P", "\\frac12", "rows-1")),
    "MATH-500": (
        {"problem": "P", "solution": "s", "answer": "3", "subject": "Algebra", "level": 5, "unique_id": "test/a/1.json"},
        ("math", "P", "3", "test/a/1.json"),
    ),
    "AIME with capitals": ({"ID": "2024-I-1", "Problem": "P", "Answer": 204}, ("math", "P", "204", "2024-I-1")),
    "AIME with whole numbers": ({"id": 0, "problem": "P", "answer": 33}, ("math", "P", "33", "0")),
    "AIME of text": ({"id": 60, "problem": "P", "answer": "033", "url": "u"}, ("math", "P", "033", "60")),
    "MATH": ({"problem": "P", "solution": "so \\boxed{\\frac{1}{2}}."}, ("math", "P", "\\frac{1}{2}", "rows-1")),
    "slime": ({"prompt": [{"role": "user", "content": "P"}], "label": "5"}, ("math", "P", "5", "rows-1")),
    "OpenCompass": ({"origin_prompt": "P", "gold_answer": "7"}, ("math", "P", "7", "rows-1")),
    "verl": (
        {"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "P"}], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": "18"}, "extra_info": {"index": 3, "split": "train"}},
        ("math", "P", "18", "3"),
    ),
    "DAPO-Math": (
        {"data_source": "math_dapo", "prompt": [{"role": "user", "content": "P"}], "ability": "MATH",
         "reward_model": {"style": "rule-lighteval/MATH_v2", "ground_truth": "34"}, "extra_info": {"index": "9a98"}},
        ("math", "P", "34", "9a98"),
    ),
    "Skywork-OR1": (
        {"data_source": "train-math-numinamath", "prompt": [{"role": "user", "content": "P"}], "ability": "math",
         "reward_model": {"style": "rule", "ground_truth": '["2"]'}, "extra_info": {"model_difficulty": {"a": 3}}},
        ("math", "P", "2", "rows-1"),
    ),
    "verl of code": (
        {"data_source": "taco", "prompt": [{"role": "user", "content": "P"}], "ability": "code",
         "reward_model": {"ground_truth": TACO_TESTS}, "extra_info": {"index": 1}},
        ("code", "P", {"input_output": {"inputs": ["1\n"], "outputs": ["2\n"]}}, "1"),
    ),
    "TACO": (
        {"question": "Double it.", "solutions": "[]", "starter_code": "", "input_output": TACO_TESTS, "difficulty": "EASY"},
        ("code", "Double it.", {"input_output": {"inputs": ["1\n"], "outputs": ["2\n"]}}, "rows-1"),
    ),
    "LiveCodeBench": (
        {"question_title": "A", "question_content": "Double it.", "platform": "atcoder", "question_id": "abc1",
         "contest_date": "2024-09-01T00:00:00", "starter_code": "", "difficulty": "easy", "metadata": "{}",
         "public_test_cases": json.dumps([{"input": "1\n", "output": "2\n", "testtype": "stdin"}]),
         "private_test_cases": LCB_PRIVATE},
        ("code", "Double it.", ..., "abc1"),
    ),
    "HumanEval": (
        {"task_id": "HumanEval/0", "prompt": "def f(x):\n    '1'\n", "canonical_solution": "  return x", "entry_point": "f",
         "test": "def check(candidate):\n    assert candidate(1) == 1\n"},
        ("code", "Complete this function.", ..., "HumanEval/0"),
    ),
    "MBPP": (
        {"task_id": 2, "text": "Write f.", "code": "def f(): return 1", "test_list": ["assert f() == 1"]},
        ("code", "Write f.", {"tests": "assert f() == 1"}, "2"),
    ),
    "IFEval": (
        {"key": 1000, "prompt": "Write.", "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
         "kwargs": [{"num_words": None, "relation": None}, {"num_words": 0, "relation": "at least"}]},
        ("instructions", "Write.",
         {"instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
          "kwargs": [{}, {"num_words": 0, "relation": "at least"}]}, "1000"),
    ),
}  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("form", PROMPTS)
def test_prompts_of_public_files(tmp_path: Path, form: str) -> None:
    row, (domain, prompt, answer, name) = PROMPTS[form]
    read = read_prompt_file(write(tmp_path / "rows.jsonl", [row]))
    (record,) = read.records
    text = record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content
    assert (record.domain, record.id) == (domain, name) and text.startswith(prompt)
    assert answer is ... or record.answer == answer
    assert read.note.startswith(f"{tmp_path}/rows.jsonl: read as ") and read.note.endswith(": 1 rows")
    if domain == "code":
        tests = read_tests(record.answer)
        assert tests.cases or tests.test
    check_answers([(record.place, record.domain, record.answer)], {})  # its verifier can use it


@pytest.mark.parametrize("kind", ["parquet", "json", "jsonl.gz", "json of lines"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    rows = [row for row, _ in (PROMPTS["verl"], PROMPTS["DAPO-Math"])]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / f"rows.{kind.split()[0]}"
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        rows[0]["extra_info"]["index"] = "3"
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text("\ufeff \n" + json.dumps(rows, indent=1))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    assert [(record.id, record.answer) for record in read_prompts(path)] == [("3", "18"), ("9a98", "34")]


def test_repeated_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    row, other = PROMPTS["DAPO-Math"][0], {"problem": "P", "answer": "1"}
    read = read_prompt_file(write(tmp_path / "dapo.jsonl", [row, row, row]))
    assert len(read.records) == 1 and read.note.endswith(": 1 rows, 2 repeated rows left out")
    read = read_prompt_file(write(tmp_path / "b.jsonl", [other, other | {"answer": "2"}, other]))
    assert [record.answer for record in read.records] == ["1", "2"]
    clash = row | {"reward_model": {"ground_truth": "35"}}
    with pytest.raises(UserError, match=r"c\.jsonl:2: the id '9a98' is already used at .*c\.jsonl:1"):
        read_prompts(write(tmp_path / "c.jsonl", [row, clash]))
    parts = [row, row | {"prompt": [{"role": "user", "content": "another"}]}]  # as where each part counts from 0
    read = read_prompt_file(write(tmp_path / "e.jsonl", parts))
    assert [record.id for record in read.records] == ["9a98", "e-2"]
    assert read.note.endswith(": 2 rows, 1 ids that are taken replaced by the row's number")
    own = {"id": "1", "domain": "math", "prompt": "P", "answer": "2"}
    with pytest.raises(UserError, match="already used"):  # a file of the contract says what it means
        read_prompts(write(tmp_path / "d.jsonl", [own, own]))


def test_named_columns(tmp_path: Path) -> None:
    rows = [{"q": {"text": "P"}, "gold": 3, "n": 7}, {"q": {"text": "Q"}, "gold": 4, "n": 8}]
    fields = Fields.parse(["prompt=q.text", "answer=gold", "id=n"], "math", PROMPT_FIELDS, "--data.fields")
    read = read_prompt_file(write(tmp_path / "a.jsonl", rows), fields)
    assert [(r.id, r.domain, r.prompt, r.answer) for r in read.records] == [("7", "math", "P", 3), ("8", "math", "Q", 4)]
    assert "prompt=q.text, answer=gold, id=n" in read.note
    sft = Fields.parse(["response=a"], None, SFT_FIELDS, "--data.fields")
    read_ = read_sft_file(write(tmp_path / "s.jsonl", [{"prompt": "p", "a": "r"}]), sft)
    assert read_.records[0].messages[1].content == "r"
    with pytest.raises(UserError, match=r"a\.jsonl:1: the column 'nope' of 'answer' is missing; the row has q, gold, n"):
        read_prompt_file(tmp_path / "a.jsonl", Fields.parse(["answer=nope"], "math", PROMPT_FIELDS, "--data.fields"))
    for pairs, message in ((["prompt"], "NAME=COLUMN"), (["x=y"], "x is none of id"), (["id=a", "id=b"], "given twice")):
        with pytest.raises(UserError, match=message):
            Fields.parse(pairs, None, PROMPT_FIELDS, "--data.fields")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1", "domain": "math", "query": "P", "answer": "2"}, "'query' seems to hold it: --data.fields prompt=query"),
        ({"id": "1", "domain": "math", "prompt": "P", "ground_truth": "2"}, "--data.fields answer=ground_truth"),
        ({"prompt": "P", "answer": "2", "uuid": "a", "domain": "math"}, "'id' is missing.*--data.fields id=uuid"),
        ({"id": "1", "prompt": "P", "answer": "2"}, "'domain' is missing.*--data.domain gives one to all rows"),
        ({"question": "P", "answer": "just text"}, "'prompt' is missing.*--data.fields prompt=question"),
        ({"problem": "P", "answer": float("nan")}, "'answer' is missing"),
        ({"problem": "P", "answer": ["1", "2"]}, "'answer' is a list"),
        ({"problem": "P", "solution": "no box"}, r"no \\boxed"),
        ({"question": "Q", "input_output": "{"}, "'input_output' is not JSON"),
        ({"prompt": "p", "reward_model": {"style": "rule"}}, "'reward_model' has no 'ground_truth'"),
    ],
)
def test_what_is_missing_is_looked_for(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"r\.jsonl:1: .*{message}"):
        read_prompts(write(tmp_path / "r.jsonl", [row]))


def test_a_row_of_another_form(tmp_path: Path) -> None:
    rows = [{"problem": "P", "answer": "1"}, {"question": "Q", "answer": "2"}]
    with pytest.raises(UserError, match=r"r\.jsonl:2: 'problem' is missing, in a file of the form math"):
        read_prompts(write(tmp_path / "r.jsonl", rows))


def test_a_domain_for_all_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"id": "1", "prompt": "P", "answer": "2"}, {"prompt": "Q", "answer": "3"}])
    records = read_prompt_file(path, Fields(domain="science")).records
    assert [(record.id, record.domain) for record in records] == [("1", "science"), ("r-2", "science")]


SFT: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "conversations of roles": (
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "prompt and completion": ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
    "messages of both": (
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "prompt beside messages": (
        {
            "prompt": "a",
            "prompt_id": "x",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        [("user", "a"), ("assistant", "b")],
    ),
    "Alpaca": ({"instruction": "a", "input": "i", "output": "b"}, [("user", "a\n\ni"), ("assistant", "b")]),
    "Alpaca without input": ({"instruction": "a", "input": "", "output": "b"}, [("user", "a"), ("assistant", "b")]),
    "GSM8K": ({"question": "a", "answer": "b\n#### 1"}, [("user", "a"), ("assistant", "b\n#### 1")]),
    "MATH": ({"problem": "a", "solution": "b", "level": 1}, [("user", "a"), ("assistant", "b")]),
}


@pytest.mark.parametrize("form", SFT)
def test_conversations_of_public_files(tmp_path: Path, form: str) -> None:
    row, expected = SFT[form]
    (record,) = read_sft_file(write(tmp_path / "s.jsonl", [row])).records
    assert [(message.role, message.content) for message in record.messages] == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "bot7", "value": "a"}]}, "turn 0 of 'conversations' is from 'bot7'"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "ends with a message of role user"),
        ({"conversations": "x"}, "'conversations' is not a list"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "z"}, {"role": "assistant", "content": "b"}]}, "keep one"),
        ({"prompt": "a", "completion": "b", "tools": [{"title": "f"}]}, "each of 'tools' is"),
        ({"prompt": "a", "completion": "b", "functions": [{"name": "f"}]}, "'functions' is given"),
        ({"chat": [{"role": "user", "content": "a"}]}, "neither 'messages' nor"),
        ({"prompt": "a", "generation": "b"}, "'response' is missing.*--data.fields response=generation"),
    ],
)
def test_mistakes_in_public_conversations(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"s\.jsonl:1: .*{message}"):
        read_sft_file(write(tmp_path / "s.jsonl", [row]))


def test_the_real_gsm8k_file() -> None:
    path = SHARED / "data/gsm8k_train.jsonl"
    if not path.is_file():
        pytest.skip("the published GSM8K file is not beside the project")
    records = read_prompts(path)
    assert len(records) > 1000 and records[0].answer == "72" and {record.domain for record in records} == {"math"}
    check_answers([(record.place, record.domain, record.answer) for record in records], {})


def test_the_real_humaneval_file() -> None:
    path = SHARED / "data/humaneval.jsonl.gz"
    if not path.is_file():
        pytest.skip("the published HumanEval file is not beside the project")
    records = read_prompts(path)
    assert len(records) == 164 and records[0].id == "HumanEval/0"
    check_answers([(record.place, record.domain, record.answer) for record in records], {})
