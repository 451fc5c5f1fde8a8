"""BFCL, its live part, in prompting mode. `rewards.calls` reads and compares the calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Grade, Loaded, PlacedRow, Problem, Row
from megatron_ring.benchmarks.rows import RowError, as_text, id_of, need, parsed, placed, unique
from megatron_ring.rewards.calls import Call, calls_differ, read_calls

_KINDS = ("live_parallel_multiple", "live_parallel", "live_multiple", "live_simple", "live_irrelevance", "live_relevance",
          "parallel_multiple", "parallel", "multiple", "simple", "irrelevance", "relevance")  # fmt: skip
_NO_ANSWER = ("irrelevance", "relevance")


def read_bfcl(rows: Sequence[PlacedRow]) -> Loaded:
    """Rows of questions, and of their possible answers, which are joined by id."""
    truths = {id_of(row, "id"): row["ground_truth"] for _, row in rows if row.get("ground_truth") is not None}
    problems, left_out = [], 0
    for number, (place, row) in enumerate(rows, start=1):
        if row.get("question") is None:
            continue
        try:
            problem = placed(_problem(row, truths), place, number)
        except RowError as error:
            raise RowError(f"{place}: {error}") from None
        if problem.category in ("", "multi_turn"):
            left_out += 1
        else:
            problems.append(problem)
    notes = [f"{left_out:,} rows left out: of categories that are not single-turn calls"] if left_out else []
    return Loaded(unique(problems), notes)


def _problem(row: Row, truths: Mapping[str, Any]) -> Problem:
    name = id_of(row, "id")
    category = "" if "multi_turn" in name else next((kind for kind in _KINDS if name.startswith(kind)), "")
    functions = parsed(need(row, "function"), "function")
    functions = functions if isinstance(functions, list) else [functions]
    turns = parsed(row["question"], "question")
    turn = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], list) else turns
    question = as_text(turn, "question")
    truth = parsed(truths[name], "ground_truth") if name in truths else None
    if truth is None and category and not category.endswith(_NO_ANSWER):
        raise RowError(f"the possible answer of {name!r} is not there: give the folder that holds possible_answer/ too")
    system = "\n".join(item["content"] for item in turn if isinstance(item, Mapping) and item.get("role") == "system")
    listed = json.dumps(functions, ensure_ascii=False)
    prompt = (
        f"{system + chr(10) if system else ''}These functions can be called, described as JSON:\n{listed}\n\n"
        "Answer the request with the calls that it needs, and nothing else, in the form "
        "[name(parameter=value, …), …] with Python's literals as values. Where no function fits the request, or a parameter "
        f"that is required is not given, say so in words and call nothing.\n\nRequest: {question}"
    )
    return Problem(name, prompt, {"truth": truth, "functions": functions, "kind": category}, "", category)


def score(problem: Problem, response: str) -> Grade:
    """1 where the calls are those of a possible answer; for (ir)relevance where there is a call, or none."""
    calls = read_calls(response)
    kind = problem.answer["kind"]
    if kind.endswith("irrelevance"):
        return Grade(float(not calls), _key(calls or []), "no call" if not calls else f"{len(calls)} calls, none wanted")
    if kind.endswith("relevance"):
        return Grade(float(bool(calls)), _key(calls or []), "a call" if calls else "no call")
    if calls is None:
        return Grade(0.0, None, "no calls that can be read")
    problem_found = calls_differ(calls, problem.answer["truth"], problem.answer["functions"])
    return Grade(float(problem_found is None), _key(calls), problem_found or "correct")


def _key(calls: list[Call]) -> str:
    return json.dumps(sorted(calls, key=repr), sort_keys=True, default=repr)
