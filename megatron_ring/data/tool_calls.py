"""Tools that a conversation may call, and calls of them, as files and clients write them: OpenAI's form.

A record keeps both as JSON text in one form, so that records compare and can be keys: tools
`[{"type": "function", "function": {"name", …}}]`, calls `[{"type": "function", "function": {"name", "arguments": {…}}}]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class CallError(ValueError):
    """What is wrong with tools or calls, said without its place."""


def read_calls(value: object) -> str:
    """The calls of an assistant's message; "" where there are none. Arguments may be an object or its JSON text.

    Raises:
        CallError: one is no call of a function.
    """
    found = []
    for call in _list_of(value, "tool_calls"):
        function = _function(call)
        if function is None:
            raise CallError("each of 'tool_calls' is {type, function: {name, arguments}}")
        arguments = function.get("arguments")
        arguments = {} if arguments is None else arguments  # tables have null for what a row lacks
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                raise CallError(f"the arguments of the call of {function['name']} are not JSON") from None
        if not isinstance(arguments, dict):
            raise CallError(f"the arguments of the call of {function['name']} are not an object")
        found.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return _text_of(found)


def read_tools(value: object) -> str:
    """The tools that may be called; "" where there are none. Raises `CallError` where one has no name."""
    found = []
    for tool in _list_of(value, "tools"):
        function = _function(tool)
        if function is None:
            raise CallError("each of 'tools' is {type: function, function: {name, description, parameters}}")
        found.append({"type": "function", "function": dict(function)})
    return _text_of(found)


def names_of(*texts: str) -> list[str]:
    """The functions that tools and calls name."""
    return [one["function"]["name"] for text in texts if text for one in json.loads(text)]


def _list_of(value: object, name: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise CallError(f"'{name}' is text that is not JSON: give a list") from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise CallError(f"'{name}' is no list: give a list of objects")
    return value


def _function(entry: object) -> Mapping[str, Any] | None:
    """What an entry calls or describes, also where it is not wrapped as OpenAI does; None where it has no name."""
    if not isinstance(entry, dict) or entry.get("type", "function") != "function":
        return None
    function = entry.get("function", entry)
    named = isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]
    return {key: value for key, value in function.items() if key != "type" or "function" in entry} if named else None


def _text_of(found: list[dict[str, Any]]) -> str:
    return json.dumps(found, ensure_ascii=False) if found else ""
