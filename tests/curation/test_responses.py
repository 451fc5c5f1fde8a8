"""Responses of a teacher: which stay, one a row, and that nothing is lost on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_ring.curation.options import Clean, Exact, Near, PerProblem, Responses, Verify
from megatron_ring.curation.pipeline import run_recipe
from megatron_ring.curation.recipe import Recipe, Source, read_recipe
from megatron_ring.curation.responses import mixing, repetition, texts_of, thinking_fault
from megatron_ring.data.files import read_prompt_file, read_sft_file
from megatron_ring.data.messages import RecordError
from megatron_ring.errors import UserError
from tests.curation.conftest import Curated, problem, write_jsonl

THOUGHT = "<think>\nAdd them.\n</think>\n\nThe sum is \\boxed{9}."


def teacher(text: str | None, **more: Any) -> dict[str, Any]:
    return problem("What is 4 + 5?", "9", response=text, **more)


THINKING = [
    (THOUGHT, "any", None),
    ("Add them.\n</think>\nIt is 9.", "required", None),  # the template began the block
    ("It is 9.", "required", "it has no <think> block"),
    ("It is 9.", "any", None),
    (THOUGHT, "forbidden", "it has a <think> block"),
    ("<think>\nAdd them, and so on", "any", "its tags are <think>"),
    ("<think>a</think><think>b</think>9", "any", "its tags are <think> </think> <think> </think>"),
    ("Well. <think>a</think>9", "any", "something stands before <think>"),
    ("<think> </think>9", "any", "its <think> block is empty"),
    ("<think>a</think>\n", "any", "nothing follows </think>"),
]


@pytest.mark.parametrize(("text", "think", "fault"), THINKING)
def test_thinking(text: str, think: str, fault: str | None) -> None:
    assert thinking_fault(text, think) == fault


def test_repetition() -> None:
    loop = "Wait, let me check the sum of the two numbers once more before I answer. "
    assert repetition(loop * 40, 20, 20) is not None and repetition("wait " * 60, 20, 20) is not None
    assert repetition(loop * 5, 20, 20) is None
    assert repetition(" ".join(f"step {n} adds {n} to {n + 1}" for n in range(500)), 20, 20) is None


def test_mixing() -> None:
    english = "So the sum of the two numbers is nine, as we have seen above. " * 3
    assert mixing(english + "所以答案是九，这是正确的", "What is 4 + 5?", 0.01) is not None
    assert mixing(english + "α + β ≥ 9 – “fine”", "What is 4 + 5?", 0.01) is None
    assert mixing(english + "所以答案是九", "4 加 5 是多少？", 0.01) is None  # the problem has the script
    assert mixing("所以答案是九，x = 9", "What is 4 + 5?", 0.01) is None  # all of it is Chinese: `languages` decides that


def test_columns() -> None:
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "9"}]
    assert texts_of("9", "r") == ["9"] and texts_of(None, "r") == texts_of([], "r") == texts_of("", "r") == []
    assert texts_of(["8", "9"], "r") == ["8", "9"] and texts_of([{"text": "8"}, {"content": "9"}], "r") == ["8", "9"]
    assert texts_of(talk, "r") == ["9"] and texts_of([talk, talk], "r") == ["9", "9"]
    for value in (5, {"a": 1}, [5], [{"role": "user", "content": "What?"}]):
        with pytest.raises(RecordError):
            texts_of(value, "r")


def test_each_rule(curated: Callable[..., Curated]) -> None:
    rows = [
        teacher(THOUGHT),
        teacher("The sum is \\boxed{8}."),
        teacher(None),
        teacher("The sum is \\boxed{9}.", metadata={"finish_reason": "length"}),
        teacher("<think>The sum is \\boxed{9}."),
        teacher("once more " * 100 + "\\boxed{9}"),
        teacher("Die Summe der beiden Zahlen ist gleich neun, wie man leicht sieht: \\boxed{9}."),
        teacher("The sum of the two is nine, 所以答案是九. \\boxed{9}"),
        teacher("x" * 2000 + "\\boxed{9}"),
        teacher("no box"),
        teacher("The sum is \\boxed{9}.", id="other"),
    ]
    found = curated(rows, Responses(languages=("en",), max_characters=1500), Verify())
    assert found.reasons == {
        "s-2": "wrong_response", "s-3": "missing_response", "s-4": "cut_off", "s-5": "think_format", "s-6": "repetition",
        "s-7": "language", "s-8": "language_mixing", "s-9": "too_long", "s-10": "wrong_response",
    }  # fmt: skip
    assert "boxed '8', expected '9'" in next(entry["evidence"] for entry in found.ledger if entry["id"] == "s-2")
    assert [row["response"] for row in found.kept] == [THOUGHT, "The sum is \\boxed{9}."]


def test_so_many_to_a_problem(tmp_path: Path) -> None:
    texts = ["It is \\boxed{9}.", "Nine: \\boxed{9}.", "It is  \\boxed{9}.", "\\boxed{9}", "\\boxed{8}"]
    rows = [
        {"problem": "What is 4 + 5?", "answer": "9", "source": "x", "generations": texts},
        {"problem": "What is 4+5 ?", "answer": "9", "source": "x", "generations": ["So, in the end, it is \\boxed{9}."]},
        {"problem": "What is 5 + 5?", "answer": "10", "source": "x", "generations": []},
        {"problem": "What is 6 + 5?", "answer": "11", "source": "x", "generations": ["\\boxed{11}"]},
    ]
    write_jsonl(tmp_path / "openr1.jsonl", rows)
    (tmp_path / "r.yaml").write_text(
        "sources: [{name: t, files: openr1.jsonl, response: generations}]\n"
        "steps: [responses, verify, {per_problem: {keep: 2, prefer: shortest}}]\n"
    )
    run_recipe(read_recipe(tmp_path / "r.yaml"), tmp_path / "out", 1, lambda text: None)
    found = Curated(tmp_path / "out")
    assert [row["id"] for row in found.kept] == ["t-1.1", "t-1.4", "t-4"]
    assert found.reasons == {
        "t-1.2": "beyond_keep", "t-1.3": "same_response", "t-1.5": "wrong_response", "t-2": "beyond_keep",
        "t-3": "missing_response",
    }  # fmt: skip
    assert found.summary["read"] == 8 == len(found.kept) + len(found.dropped)
    kept = tmp_path / "out" / "kept.jsonl"
    assert [record.messages[-1].content for record in read_sft_file(kept).records] == [texts[0], texts[3], "\\boxed{11}"]
    assert [record.answer for record in read_prompt_file(kept).records] == ["9", "9", "11"]


def test_rows_without_a_response_are_no_responses(curated: Callable[..., Curated]) -> None:
    rows = [problem("What is 4 + 5?"), problem("What is 4 + 5?"), teacher("\\boxed{9}"), teacher("\\boxed{9}")]
    assert curated(rows, PerProblem()).reasons == {"s-4": "same_response"}


def test_a_column_that_is_missing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"problem": "What is 4 + 5?", "answer": "9"}])
    with pytest.raises(UserError, match=r"a.jsonl:1: the column 'generations' of 'response' is missing"):
        run_recipe(Recipe((Source("s", (path,), response="generations"),), ()), tmp_path / "out", 1, lambda text: None)


RESPONSE = st.one_of(
    st.none(), st.text(max_size=30), st.integers(), st.sampled_from([THOUGHT, "\\boxed{9}", "\\boxed{8}", "<think>"])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(responses=st.lists(st.one_of(RESPONSE, st.lists(RESPONSE, max_size=4)), max_size=8), keep=st.integers(1, 3))
def test_nothing_is_lost(responses: list[Any], keep: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [
        {"problem": f"What is {4 + n % 2} + 5?", "answer": "9", "r": text} for n, text in enumerate([THOUGHT, *responses])
    ]
    (folder / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = (Clean(), Responses(), Verify(), PerProblem(keep=keep), Exact())
    run_recipe(Recipe((Source("s", (folder / "s.jsonl",), response="r"),), steps), folder / "out", 1, lambda text: None)
    found = Curated(folder / "out")
    identities = [row["id"] for row in (*found.kept, *found.dropped)]
    assert len(set(identities)) == len(identities) == found.summary["read"] >= len(rows)
    assert {name.partition("-")[2].partition(".")[0] for name in identities} == {str(n + 1) for n in range(len(rows))}
    assert sorted(found.reasons) == sorted(row["id"] for row in found.dropped)


def test_tools_system_and_thinking_come_through(curated: Callable[..., Curated]) -> None:
    """All that training reads of a row is there after every step; rows that differ in it alone are no copies."""
    wanted = {"name": "add", "arguments": {"a": 4, "b": 5}}
    said = f"<tool_call>{json.dumps(wanted)}</tool_call>"
    chat, elsewhere = (
        [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "", "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": arguments}}]},
         {"role": "tool", "content": "There are four and five."}, {"role": "user", "content": "Add up what you have found."}]
        for arguments in ({}, {"at": "the shed"})
    )  # fmt: skip

    def tool(name: str) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name}}

    def row(prompt: Any, tools: Any, **more: Any) -> dict[str, Any]:
        return {"id": "x", "domain": "tool-calls", "prompt": prompt, "answer": {"calls": [wanted]}, "response": said,
                "tools": tools, **more}  # fmt: skip

    question = "What is the sum of four and of five, in a call?"
    rows = [
        row(question, [tool("add")], system="Be brief."),
        row(question, json.dumps([tool("add")["function"], tool("sub")["function"]]), reasoning_content="Easy."),
        row(chat, [tool("add"), tool("look")]),
        row(elsewhere, [tool("add"), tool("look")]),
        row(question, [{"title": "nameless"}]),
    ]
    steps = (Clean(min_characters=2), Exact(), Near(numbers=False), Responses(), Verify(), PerProblem())
    found = curated(rows, *steps)
    assert list(found.reasons.values()) == ["malformed"]
    brief = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]
    assert [one["prompt"] for one in found.kept] == [brief, question, chat, elsewhere]
    looking = [tool("add"), tool("look")]
    assert [one["tools"] for one in found.kept] == [[tool("add")], [tool("add"), tool("sub")], looking, looking]
    prompts, conversations = (read(found.out / "kept.jsonl").records for read in (read_prompt_file, read_sft_file))
    for prompt, conversation in zip(prompts, conversations, strict=True):
        assert prompt.messages == conversation.messages[:-1] and prompt.messages[0].tools
    answers = [one.messages[-1].content for one in conversations]
    assert answers == [said, f"<think>\nEasy.\n</think>\n\n{said}", said, said]
