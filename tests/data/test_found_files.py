"""Files as strangers have them: forms slightly beside the published ones, rows that their publishers left without an answer,
and columns that must not be left out in silence."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_ring.data.fields import PROMPT_FIELDS, SFT_FIELDS, Fields
from megatron_ring.data.files import read_prompt_file, read_questions, read_sft_file
from megatron_ring.data.parquet import parquet_rows
from megatron_ring.errors import UserError
from megatron_ring.rewards.code_formats import read_tests
from tests.data.test_forms import PROMPTS, write

TESTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
LONG = "9" * 5000
CALLED = f'{{"fn_name": "f", "inputs": [[1]], "outputs": [{LONG}]}}'
ASKED = [{"role": "user", "content": "a"}]

PROMPT_ROWS: dict[str, tuple[dict[str, Any], tuple[str, str, Any]]] = {
    "BigMath": (
        {
            "problem": "P",
            "answer": "5",
            "source": "orca_math",
            "domain": ["Mathematics -> Algebra"],
            "llama8b_solve_rate": 0.3,
        },
        ("math", "P", "5"),
    ),
    "AMC": ({"id": 0, "question": "P", "answer": 27.0, "url": "u"}, ("math", "P", "27")),
    "AIME as question and text": ({"question": "P", "answer": "070"}, ("math", "P", "070")),
    "MathArena": ({"problem_idx": 1, "problem": "P", "answer": 70, "problem_type": ["Algebra"]}, ("math", "P", "70")),
    "verl whose objects are JSON text": (
        {"data_source": "math_dapo", "prompt": ASKED, "reward_model": '{"style": "rule", "ground_truth": "34"}'},
        ("math", "a", "34"),
    ),
    "verl with a number": (
        {"data_source": "lighteval/MATH", "prompt": ASKED, "ability": "math", "reward_model": {"ground_truth": 12}},
        ("math", "a", "12"),
    ),
    "verl of code with a long number": (
        {"data_source": "taco", "prompt": ASKED, "ability": "code", "reward_model": {"ground_truth": CALLED}},
        ("code", "a", {"input_output": CALLED}),
    ),
    "TACO with a long number": (
        {"question": "Q", "starter_code": "def f(x):", "input_output": CALLED},
        ("code", "Q\n\nUse this starter code:\n```python\ndef f(x):\n```", {"input_output": CALLED}),
    ),
}


@pytest.mark.parametrize("form", PROMPT_ROWS)
def test_prompts_beside_the_published_forms(tmp_path: Path, form: str) -> None:
    row, (domain, prompt, answer) = PROMPT_ROWS[form]
    (record,) = read_prompt_file(write(tmp_path / "rows.jsonl", [row])).records
    text = record.prompt if isinstance(record.prompt, str) else record.prompt[-1].content
    assert (record.domain, text, record.answer) == (domain, prompt, answer)
    if domain == "code":
        assert read_tests(record.answer).cases[0].expected == int(decimal.Decimal(LONG))


UNANSWERED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (PROMPTS["MATH"][0], {"problem": "Prove it.", "solution": "Trivial."}, "'solution' has no"),
    (PROMPTS["TACO"][0], {"question": "Q", "input_output": ""}, "'input_output' is "),
    (PROMPTS["TACO"][0], {"question": "Q", "input_output": '{"inputs": [], "outputs": []}'}, "the reference holds no tests"),
    (PROMPTS["TACO"][0], {"question": "Q", "input_output": '{"inputs": ["1"], "outputs": [""]}'}, "no test expects any"),
    (PROMPTS["verl of code"][0],
     {**PROMPTS["verl of code"][0], "reward_model": {"ground_truth": '{"inputs": [], "outputs": []}'}},
     "the reference holds no tests"),
    (PROMPTS["LiveCodeBench"][0], {**PROMPTS["LiveCodeBench"][0], "question_id": "b", "public_test_cases": "[]",
                                   "private_test_cases": "[]"}, "the reference holds no tests"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "reason"), UNANSWERED)
def test_rows_without_an_answer_are_left_out_and_counted(
    tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], reason: str
) -> None:
    read = read_prompt_file(write(tmp_path / "rows.jsonl", [good, bad, {**bad, "extra": 1}]))
    assert len(read.records) == 1
    assert f"1 rows, 2 rows without an answer left out (the first: {tmp_path}/rows.jsonl:2: {reason}" in read.note
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*; no row of the file has an answer"):
        read_prompt_file(write(tmp_path / "rows.jsonl", [bad]))


def test_malformed_rows_of_public_files_are_refused(tmp_path: Path) -> None:
    rows = [{"problem": "P", "answer": "1"}, {"problem": "Q", "answer": None}]
    with pytest.raises(UserError, match=r"r\.jsonl:2: 'answer' is missing"):
        read_prompt_file(write(tmp_path / "r.jsonl", rows))
    good = PROMPTS["TACO"][0]
    with pytest.raises(UserError, match=r"r\.jsonl:2: 'input_output' is not JSON"):
        read_prompt_file(write(tmp_path / "r.jsonl", [good, {"question": "Q", "input_output": '{"inputs": ['}]))
    with pytest.raises(UserError, match=r"r\.jsonl:2: 'answer' is not a whole number, in a file whose first one is"):
        read_prompt_file(write(tmp_path / "r.jsonl", [{"question": "P", "answer": 1}, {"question": "Q", "answer": "x"}]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"data_source": "geometry3k", "prompt": ASKED, "reward_model": {"ground_truth": "1"}, "images": [{"bytes": "x"}]},
         "'images' is given: only text can be read"),
        ({"problem": "P", "answer": "1", "image": {"path": "x.png"}}, "'image' is given"),
        ({"problem": "P", "answer": "2", "functions": [{"name": "f"}]}, "'functions' is given"),
        ({"Question": "P", "Correct Answer": "B", "domain": "math", "prompt": "p", "id": 1},
         "'Correct Answer' seems to hold it: --data.fields 'answer=Correct Answer'"),
    ],
)  # fmt: skip
def test_what_would_be_left_out_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"r\.jsonl:1: .*{message}"):
        read_prompt_file(write(tmp_path / "r.jsonl", [row]))


def test_a_domain_for_a_file_with_another_column_of_that_name(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", [{"q": "P", "gold": 3, "domain": "Algebra"}, {"q": "Q", "gold": 4, "domain": ["x"]}])
    fields = Fields.parse(["prompt=q", "answer=gold"], "math", PROMPT_FIELDS, "--data.fields")
    assert [record.domain for record in read_prompt_file(path, fields).records] == ["math", "math"]
    fields = Fields.parse(["prompt=q", "answer=gold", "domain=domain"], "math", PROMPT_FIELDS, "--data.fields")
    with pytest.raises(UserError, match=r"r\.jsonl:2: 'domain' is a list"):
        read_prompt_file(path, fields)


def test_questions_have_no_flag_for_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"q\.jsonl:1: 'prompt' is missing.*; 'query' seems to hold it: call it 'prompt'$"):
        read_questions(write(tmp_path / "q.jsonl", [{"query": "P"}]))


def test_answers_that_are_none_and_questions_that_need_their_choices(tmp_path: Path) -> None:
    good = {"problem": "P", "answer": "1"}
    for answer in ("", "  ", "proof", "notfound"):
        read = read_prompt_file(write(tmp_path / "r.jsonl", [good, good | {"problem": "Q", "answer": answer}]))
        assert len(read.records) == 1 and "1 rows without an answer left out (the first: " in read.note
    for name in ("choices", "options"):
        with pytest.raises(UserError, match=r"r\.jsonl:1: 'prompt' is missing.*'question' seems to hold it"):
            read_prompt_file(write(tmp_path / "r.jsonl", [{"question": "Q", "answer": 1, name: ["x", "y"], "domain": "d"}]))


def test_columns_within_lists_and_json_text(tmp_path: Path) -> None:
    row = {"choices": [{"message": {"content": "b"}}], "body": json.dumps({"messages": [{"role": "user", "content": "a"}]})}
    path = write(tmp_path / "r.jsonl", [row])
    for column in ("choices.0.message.content", "choices[0].message.content"):
        fields = Fields.parse(["prompt=body.messages", f"response={column}"], None, SFT_FIELDS, "--data.fields")
        (record,) = read_sft_file(path, fields).records
        assert [message.content for message in record.messages] == ["a", "b"]
    for column in ("choices.1.message.content", "choices.x", "choices.0.message.content.0", "choices.-1"):
        fields = Fields.parse(["prompt=body.messages", f"response={column}"], None, SFT_FIELDS, "--data.fields")
        with pytest.raises(UserError, match=r"r\.jsonl:1: the column '.*' of 'response' is missing"):
            read_sft_file(path, fields)


A, B = ("user", "a"), ("assistant", "b")
CONVERSATIONS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "ShareGPT with a tool's answer": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "c"}, {"from": "observation",
         "value": "4"}, {"from": "gpt", "value": "b"}], "tools": "[]", "system": ""},
        [A, ("assistant", "c"), ("tool", "4"), B],
    ),
    "ShareGPT of one table with roles": (
        {"conversations": [{"from": None, "value": None, "role": "user", "content": "a"},
                           {"from": "gpt", "value": "b", "role": None, "content": None}]},
        [A, B],
    ),
    "ShareGPT with content": (
        {"conversations": [{"from": "Human", "content": "a"}, {"from": "GPT", "content": "b"}]}, [A, B]
    ),
    "roles in capitals": (
        {"messages": [{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}]}, [A, B]
    ),
    "a system prompt beside": ({"system_prompt": "s", "prompt": "a", "response": "b"}, [("system", "s"), A, B]),
    "a system prompt beside messages": (
        {"system": "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        [("system", "s"), A, B],
    ),
    "a system prompt that is there twice": (
        {"system": "s", "messages": [{"role": "system", "content": "s "}, *ASKED, {"role": "assistant", "content": "b"}]},
        [("system", "s "), A, B],
    ),
    "Alpaca of LLaMA-Factory": (
        {"instruction": "a", "input": "", "output": "b", "system": "s", "history": [["x", "y"]]},
        [("system", "s"), ("user", "x"), ("assistant", "y"), A, B],
    ),
    "Alpaca about a number": ({"instruction": "Square it.", "input": 3, "output": 9}, [("user", "Square it.\n\n3"),
                              ("assistant", "9")]),
    "Alpaca without an instruction": ({"instruction": "", "input": "a", "output": "b"}, [A, B]),
    "Dolly": ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, [("user", "a\n\nc"), B]),
    "OpenOrca": ({"id": "1", "system_prompt": "s", "question": "a", "response": "b"}, [("system", "s"), A, B]),
    "MetaMathQA": ({"query": "a", "response": "b", "type": "x"}, [A, B]),
    "messages as JSON text": ({"messages": json.dumps([{"role": "user", "content": "a"},
                              {"role": "assistant", "content": "b", "tool_calls": "[]"}])}, [A, B]),
    "ShareGPT as JSON text": ({"conversations": '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'}, [A, B]),
    "a domain that is a list": ({"problem": "a", "solution": "b", "source": ["x"], "domain": ["Algebra"]}, [A, B]),
    "reasoning beside a response": (
        {"prompt": "a", "response": "b", "thinking": "r"}, [A, ("assistant", "<think>\nr\n</think>\n\nb")]
    ),
    "reasoning beside a completion": (
        {"prompt": "a", "completion": "b", "reasoning_content": "r"}, [A, ("assistant", "<think>\nr\n</think>\n\nb")]
    ),
    "reasoning beside an output": (
        {"instruction": "a", "output": "b", "reasoning": "r"}, [A, ("assistant", "<think>\nr\n</think>\n\nb")]
    ),
    "reasoning as a setting": ({"prompt": "a", "response": "b", "reasoning": "on", "thinking": True}, [A, B]),
    "reasoning that is there twice": (
        {"reasoning": "r", "messages": [*ASKED, {"role": "assistant", "content": "<think>r</think>b"}]},
        [A, ("assistant", "<think>r</think>b")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_conversations_beside_the_published_forms(tmp_path: Path, form: str) -> None:
    row, expected = CONVERSATIONS[form]
    (record,) = read_sft_file(write(tmp_path / "s.jsonl", [row])).records
    assert [(message.role, message.content) for message in record.messages] == expected


ANSWERED = [*ASKED, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("name", ["weight", "train", "training", "loss_mask", "step_loss_mask", "loss_weight"])
@pytest.mark.parametrize(("value", "mark"), [(0, False), (1.0, True), (False, False), (None, None)])
def test_marks_of_what_is_trained(tmp_path: Path, name: str, value: Any, mark: bool | None) -> None:
    rows = [{"messages": [*ASKED, {"role": "assistant", "content": "b", name: value}]}]
    (record,) = read_sft_file(write(tmp_path / "s.jsonl", rows)).records
    assert record.marks == (() if mark is None else (None, mark))


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b", "thinking_trajectories": ["r"], "reasoning_tokens": 3, "finish_reason": "stop",
           "weight": 0, "source": "x", "reasoning_effort": "high", "cot": "c"}  # fmt: skip
    read = read_sft_file(write(tmp_path / "s.jsonl", [row]))
    assert read.note.endswith("question and answer: 1 rows; columns that are not read: cot, thinking_trajectories, weight")
    assert read.records[0].domain == "other"
    fields = Fields.parse(["prompt=question", "response=cot"], None, SFT_FIELDS, "--data.fields")
    assert ", cot" not in read_sft_file(tmp_path / "s.jsonl", fields).note


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]},
         "turn 1 of 'conversations' is from 'function_call'"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "image": "x.jpg"},
         "'image' is given"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "'input' is a list: make it text"),
        ({"instruction": "a", "input": "", "output": ["x", "y"]}, "'output' is a list"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "", "reasoning": "r"}]}, "has reasoning and no answer"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "b", "mask": 1}]}, "has 'mask', which may mean either"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "b", "weight": "1"}]}, "has 'weight' '1': use 0 or 1"),
        ({"messages": [*ASKED, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]}, "each of 'tool_call"),
        ({"messages": "[{'role': 'user'}]"}, "'messages' is text: make it a list"),
        ({"messages": ANSWERED, "thinking": "r"}, "'thinking' stands beside 'messages'"),
        ({"messages": ANSWERED, "system": {"a": 1}}, "'system' is an object"),
        ({"messages": [{"role": "system", "content": "t"}, *ANSWERED], "system": "s"}, "'system' is not the system message"),
        ({"messages": [{**ASKED[0], "train": True}, ANSWERED[1]]}, "message 0 of 'messages' is marked to be trained, but"),
        ({"instruction": "a", "output": "b", "history": [["x"]]}, "item 0 of 'history'"),
        ({"dialog": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
         "neither 'messages'.*; 'dialog' seems to hold it: --data.fields messages=dialog"),
        ({"query": "a", "generated_solution": "b"},
         "'query' and 'generated_solution' seem to hold them: --data.fields prompt=query response=generated_solution"),
    ],
)  # fmt: skip
def test_mistakes_beside_the_published_forms(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"s\.jsonl:1: .*{message}"):
        read_sft_file(write(tmp_path / "s.jsonl", [row]))


def test_named_columns_of_turns_and_a_mark_that_is_off(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a", "train": False}, {"from": "gpt", "value": "b", "weight": 1.0}]
    fields = Fields.parse(["messages=dialog"], None, SFT_FIELDS, "--data.fields")
    (record,) = read_sft_file(write(tmp_path / "s.jsonl", [{"dialog": turns}]), fields).records
    assert [(m.role, m.content) for m in record.messages] == [A, B] and record.marks == (None, True)


def test_keys_of_messages_that_are_not_read_are_named(tmp_path: Path) -> None:
    rows = [
        {"messages": [{**ASKED[0], "name": "bob", "id": None}, {"role": "assistant", "content": "b", "channel": "final"}]}
    ]
    assert read_sft_file(write(tmp_path / "s.jsonl", rows)).note == (
        f"{tmp_path}/s.jsonl: keys of messages that are not read: channel, name"
    )
    assert read_sft_file(write(tmp_path / "t.jsonl", [{"messages": ANSWERED}])).note == ""


def test_columns_of_parquet_that_no_python_value_holds(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    moment = 1_767_323_045_123_456_789  # nanoseconds
    table = arrow.table({
        "problem": ["P"],
        "answer": arrow.array([3], arrow.uint64()),
        "at": arrow.array([moment], arrow.timestamp("ns")),
        "took": arrow.array([1_500_000_001], arrow.duration("ns")),
        "clock": arrow.array([1], arrow.time64("ns")),
        "half": arrow.array([1.5], arrow.float16()),
        "nested": arrow.array([[{"at": moment}]], arrow.list_(arrow.struct([("at", arrow.timestamp("ns"))]))),
        "pairs": arrow.array([[("k", 1)]], arrow.map_(arrow.string(), arrow.int32())),
        "kind": arrow.array(["a"]).dictionary_encode(),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    (row,) = parquet_rows(tmp_path / "a.parquet")
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 123456).isoformat()
    assert row["at"] == at and row["nested"] == [{"at": at}] and row["half"] == 1.5 and row["kind"] == "a"
    assert read_prompt_file(tmp_path / "a.parquet").records[0].answer == "3"
    json.dumps(row, allow_nan=False)
