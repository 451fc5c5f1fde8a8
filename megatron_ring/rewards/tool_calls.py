"""Tool calls by their syntax tree. Domain `tool-calls`; nothing that is called runs, nothing is evaluated.

A response calls in one of two ways: blocks `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, or, without any such
block, Python: `[name(parameter=value, …), …]`, in a fenced block or not, with literals as values. Thinking is not read.

The reference is one of these:

| form                                                      | reward 1 when                                              |
|-----------------------------------------------------------|------------------------------------------------------------|
| `{"calls": [{"name": …, "arguments": {…}}, …]}`           | exactly these calls are made, with exactly these arguments |
| `{"calls": []}`                                           | nothing is called, and something is said                   |
| `{"ground_truth": [{name: {parameter: [choices]}}], …}`   | BFCL's rules; `functions` beside it are their descriptions |

`"in_order": true` beside `calls` wants them in this order. OpenAI's form of a call, `{"function": {"name", "arguments"}}`
with the arguments as JSON text, is read too. Texts are compared to the letter, numbers by value; true is not 1.

What this cannot see: whether another call would have served as well. Give all choices in BFCL's form where several would.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.calls import MAX_CALLS, Call, calls_differ, read_calls
from megatron_ring.rewards.instructions.finding import shown
from megatron_ring.rewards.instructions.text import answer_part
from megatron_ring.rewards.interface import Reward, ScoreRequest

MAX_WANTED = 64
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(rf"{_OPEN}(.*?){_CLOSE}", re.DOTALL)


class _Unreadable(ValueError):
    """Why written calls cannot be read."""


@dataclass(frozen=True, slots=True)
class WantedCalls:
    """A reference that has been checked: `calls`, or `choices` in BFCL's form with descriptions of functions."""

    calls: tuple[Call, ...] = ()
    in_order: bool = False
    choices: tuple[Mapping[str, Any], ...] | None = None
    functions: tuple[Mapping[str, Any], ...] = ()


def score(request: ScoreRequest) -> Reward:
    """1 when the calls are those wanted; the reason says what differs. For the registry."""
    try:
        return _judge(answer_part(request.response), read_wanted(request.answer))
    except (UserError, _Unreadable) as error:
        return Reward(0.0, str(error))
    except RecursionError:
        return Reward(0.0, "arguments that are nested too deeply")


def _judge(text: str, wanted: WantedCalls) -> Reward:
    calls = made_calls(text)
    if wanted.choices is None and not wanted.calls:
        said = not calls and bool(text.strip())
        return Reward(float(said), "nothing is called" if said else f"{len(calls)} calls and {len(text.strip())} characters")
    if not calls:
        return Reward(0.0, "no calls that can be read")
    if wanted.choices is not None:
        problem = calls_differ(calls, wanted.choices, wanted.functions)
    else:
        problem = _differ(calls, wanted)
    return Reward(float(problem is None), problem or f"{len(calls)} calls as wanted")


def made_calls(text: str) -> list[Call]:
    """The calls of a response without its thinking; none where it has only words.

    Raises:
        _Unreadable: a block `<tool_call>` that is not closed or holds no call.
    """
    if _OPEN not in text and _CLOSE not in text:
        return read_calls(text) or []
    blocks = _BLOCK.findall(text[-2 * MAX_CALLS :]) if len(text) <= 2 * MAX_CALLS else []
    if not blocks or not text.count(_OPEN) == text.count(_CLOSE) == len(blocks):
        raise _Unreadable(
            f"{text.count(_OPEN)} {_OPEN}, {text.count(_CLOSE)} {_CLOSE}, {len(blocks)} blocks that can be read"
        )
    return [_written_call(block) for block in blocks]


def read_wanted(answer: Any) -> WantedCalls:
    """Read and check a reference.

    Raises:
        UserError: it has none of the forms; names what is wrong.
    """
    given = {"calls": answer} if isinstance(answer, list) else answer
    if not isinstance(given, Mapping):
        raise UserError(f"the reference of tool calls must be an object or a list of calls, not {type(answer).__name__}")
    unknown = given.keys() - {"calls", "in_order", "ground_truth", "functions"}
    if unknown:
        raise UserError(f"the reference has an unknown key {shown(str(min(unknown, key=str)))}")
    if ("calls" in given) == ("ground_truth" in given):
        raise UserError("the reference must have 'calls', or 'ground_truth' in BFCL's form, and not both")
    if "calls" in given:
        calls, in_order = _list(given["calls"], "calls", least=0), given.get("in_order", False)
        if not isinstance(in_order, bool):
            raise UserError(f"the reference's 'in_order' must be true or false, not {shown(repr(in_order))}")
        try:
            return WantedCalls(tuple(map(_call, calls)), in_order)
        except _Unreadable as error:
            raise UserError(f"the reference's 'calls': {error}") from None
    choices, functions = _list(given["ground_truth"], "ground_truth", 1), _list(given.get("functions") or [], "functions", 0)
    for choice in choices:
        ((_, allowed),) = choice.items() if isinstance(choice, Mapping) and len(choice) == 1 else ((None, None),)
        lists = isinstance(allowed, Mapping) and all(isinstance(values, list) and values for values in allowed.values())
        if not lists:
            raise UserError(
                f"the reference's 'ground_truth' must hold {{name: {{parameter: [choices]}}}}, not {shown(repr(choice))}"
            )
    if not all(map(_is_description, functions)):
        raise UserError("the reference's 'functions' must be a list of descriptions, {name, parameters: {properties: {…}}}")
    return WantedCalls(choices=tuple(choices), functions=tuple(functions))


def _is_description(function: Any) -> bool:
    """Whether the types of parameters can be looked up in it."""
    parameters = (function.get("parameters") or {}) if isinstance(function, Mapping) else None
    properties = (parameters.get("properties") or {}) if isinstance(parameters, Mapping) else None
    return isinstance(properties, Mapping) and all(isinstance(kind, Mapping) for kind in properties.values())


def _differ(calls: list[Call], wanted: WantedCalls) -> str | None:
    """What is wrong with the calls; None where they are those wanted."""
    if len(calls) != len(wanted.calls):
        return f"{len(calls)} calls, expected {len(wanted.calls)}"
    made, expected = ([(name, _canonical(given)) for name, given in some] for some in (calls, wanted.calls))
    if not wanted.in_order:
        made, expected = sorted(made), sorted(expected)
    wrong = next(((one, other) for one, other in zip(made, expected, strict=True) if one != other), None)
    return f"{shown(''.join(wrong[0]), 100)}, expected {shown(''.join(wrong[1]), 100)}" if wrong else None


def _canonical(value: Any) -> str:
    """One text for all ways to write a value: keys in order, 1.0 as 1."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(str(key))}: {_canonical(value[key])}' for key in sorted(value, key=str))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_canonical, value))}]"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value) if isinstance(value, str | bool | int | float | None) else f"{type(value).__name__} {value!r}"


def _written_call(block: str) -> Call:
    return _call(_parsed(block))


def _call(given: Any) -> Call:
    """A call out of parsed JSON. Raises `_Unreadable`."""
    given = given.get("function", given) if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or not given["name"]:
        raise _Unreadable(f"{shown(repr(given))} is no object with a 'name' and 'arguments'")
    arguments = given.get("arguments", {})
    arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, Mapping):
        raise _Unreadable(f"the arguments of {shown(given['name'])} are no object")
    return given["name"], dict(arguments)


def _parsed(text: str) -> Any:
    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise _Unreadable("a key is given twice")
        return dict(pairs)

    def refused(constant: str) -> None:
        raise _Unreadable(f"{constant} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=only_once, parse_constant=refused)
    except _Unreadable:
        raise
    except ValueError:
        raise _Unreadable(f"{shown(text.strip())} is no JSON") from None


def _list(value: Any, name: str, least: int) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= MAX_WANTED:
        raise UserError(f"the reference's {name!r} must be a list of {least} to {MAX_WANTED}")
    return value
