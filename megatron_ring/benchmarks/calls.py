"""BFCL, its live part, in prompting mode: calls are written as Python, taken apart as a syntax tree and never run."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.benchmarks.problem import Grade, Loaded, PlacedRow, Problem, Row
from megatron_ring.benchmarks.rows import RowError, as_text, id_of, need, parsed, placed, unique

MAX_CALLS = 20_000  # characters
_KINDS = ("live_parallel_multiple", "live_parallel", "live_multiple", "live_simple", "live_irrelevance", "live_relevance",
          "parallel_multiple", "parallel", "multiple", "simple", "irrelevance", "relevance")  # fmt: skip
_NO_ANSWER = ("irrelevance", "relevance")
_FENCE = re.compile(r"```[a-z]{0,10}\n(.*?)```", re.DOTALL)


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
    problem_found = _differs(calls, problem.answer["truth"], problem.answer["functions"])
    return Grade(float(problem_found is None), _key(calls), problem_found or "correct")


def read_calls(response: str) -> list[tuple[str, dict[str, Any]]] | None:
    """Calls as (name, arguments); None where there are none that can be read. Their text is parsed, never evaluated."""
    blocks = _FENCE.findall(response[-MAX_CALLS:])
    written = (blocks[-1] if blocks else response).strip().strip("`").strip()
    if not written.startswith("["):
        begin, end = written.find("["), written.rfind("]")
        inner = written[begin : end + 1]
        written = inner if begin >= 0 and re.match(r"\[\s*[\w.]+\(", inner) else f"[{written}]"
    if len(written) > MAX_CALLS:
        return None
    try:
        tree = ast.parse(written, mode="eval").body
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> tuple[str, dict[str, Any]]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    return ast.unparse(node.func), {str(word.arg): _value(word.value) for word in node.keywords}


def _value(node: ast.expr) -> Any:
    """A literal; a name stands for its text (true, null and the like for what JSON means)."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)


def _differs(
    calls: list[tuple[str, dict[str, Any]]], truth: Sequence[Any], functions: Sequence[Mapping[str, Any]]
) -> str | None:
    """What is wrong with the calls; None where they are a possible answer. The order of parallel calls does not matter."""
    if len(calls) != len(truth):
        return f"{len(calls)} calls, expected {len(truth)}"
    left = list(truth)
    last = ""
    for call in calls:
        for index, wanted in enumerate(left):
            problem = _call_differs(call, wanted, functions)
            if problem is None:
                del left[index]
                break
            last = problem
        else:
            return last
    return None


def _call_differs(call: tuple[str, dict[str, Any]], wanted: Mapping[str, Any], functions: Any) -> str | None:
    ((name, allowed),) = wanted.items()
    if call[0] != name and call[0] != name.replace(".", "_"):
        return f"calls {call[0][:60]}, expected {name}"
    described: Mapping[str, Any] = next((item for item in functions if item.get("name") == name), {})
    kinds = (described.get("parameters") or {}).get("properties") or {}
    for argument, value in call[1].items():
        if argument not in allowed:
            return f"{name} is given {argument[:60]!r}, which is not expected"
        kind = str((kinds.get(argument) or {}).get("type", ""))
        if not any(_same(value, choice, kind) for choice in allowed[argument]):
            return f"{argument} is {str(value)[:60]!r}, expected one of {str(allowed[argument])[:120]}"
    missing = [argument for argument, choices in allowed.items() if argument not in call[1] and "" not in choices]
    return f"{name} lacks {missing[0]!r}" if missing else None


def _same(given: Any, wanted: Any, kind: str = "") -> bool:
    """Equal values: texts apart from case, blanks and punctuation; a whole number for a float, a truth for nothing else."""
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(given, str) and isinstance(wanted, str):
        return _bare(given) == _bare(wanted)
    if isinstance(given, int | float) and isinstance(wanted, int | float):
        return given == wanted and not (kind == "integer" and isinstance(given, float))
    if isinstance(given, list | tuple) and isinstance(wanted, list | tuple):
        return len(given) == len(wanted) and all(map(_same, given, wanted))
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):  # in the answers every value is a list of choices
        known = all(
            key in wanted and any(_same(value, choice) for choice in _choices(wanted[key])) for key, value in given.items()
        )
        return known and all(key in given or "" in _choices(choices) for key, choices in wanted.items())
    return bool(given == wanted)


def _choices(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _bare(written: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", written).lower().replace("'", '"')


def _key(calls: list[tuple[str, dict[str, Any]]]) -> str:
    return json.dumps(sorted(calls, key=repr), sort_keys=True, default=repr)
