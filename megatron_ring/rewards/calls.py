"""Calls of functions, written as Python: taken apart as a syntax tree and never run, and compared with possible answers by
the rules of BFCL. What its benchmark and the verifier of tool calls share."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ring.rewards.python_source import parse_expression

MAX_CALLS = 20_000  # characters
_FENCE = re.compile(r"```[a-z]{0,10}\n(.*?)```", re.DOTALL)

Call = tuple[str, dict[str, Any]]
"""Name and arguments."""


def read_calls(response: str) -> list[Call] | None:
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
        tree = parse_expression(written)
        if not isinstance(tree, ast.List) or not tree.elts:
            return None
        return [_call(node) for node in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    return ast.unparse(node.func), {str(word.arg): _value(word.value) for word in node.keywords}


def _value(node: ast.expr) -> Any:
    """A literal; a name stands for its text (true, null and the like for what JSON means)."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "null": None}.get(node.id, node.id)
    return ast.literal_eval(node)


def calls_differ(calls: list[Call], truth: Sequence[Any], functions: Sequence[Mapping[str, Any]]) -> str | None:
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


def _call_differs(call: Call, wanted: Mapping[str, Any], functions: Any) -> str | None:
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
