"""Tools that a conversation may call, and calls of them, as files and clients write them: OpenAI's form.

A record keeps both as JSON text in one form, so that records compare and can be keys: tools
`[{"type": "function", "function": {"name", …}}]`, calls `[{"type": "function", "function": {"name", "arguments": {…}}}]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


def results_in_order(items: Sequence[Mapping[str, Any]], roles: Sequence[str], callers: Sequence[int]) -> list[int]:
    """The places of a conversation's messages, results in the order of the calls before them where ids name these: from
    here on a result is told by its place. Where ids do not tell, results stay in their own order.

    Args:
        items: as a file or a client has them.
        roles: what each of them is.
        callers: places of those with calls, which `read_calls` has read.
    """
    order = list(range(len(items)))
    for place in callers:
        ids = [call.get("id") for call in _list_of(items[place]["tool_calls"], "tool_calls")]
        behind = range(place + 1, len(items))
        end = next((later for later in behind if roles[later] != "tool"), len(items))
        given = {later: items[later].get("tool_call_id") for later in range(place + 1, end)}
        named = all(isinstance(one, str) for one in (*ids, *given.values())) and set(given.values()) <= set(ids)
        if given and named and len(set(ids)) == len(ids):
            order[place + 1 : end] = sorted(given, key=lambda later: ids.index(given[later]))
    return order


@dataclass(frozen=True)
class CallForm:
    """How a chat template, or a server, wants calls and their results.

    Attributes:
        text: arguments as JSON text, not as an object.
        ids: an id in each call, of nine letters and digits, and in its result, which has the function's name too.
        null: null for the content of a message that calls and says nothing, not an empty text.
    """

    text: bool = False
    ids: bool = False
    null: bool = False


OPENAI = CallForm(text=True, ids=True, null=True)


def in_form(messages: Sequence[Mapping[str, Any]], form: CallForm) -> list[dict[str, Any]]:
    """Messages as objects, with calls and results in this form. Ids count the calls of the conversation, so that they stay
    as it grows; results are of the calls before them in their order."""
    found: list[dict[str, Any]] = []
    count, waiting = 0, list[dict[str, str]]()
    for message in messages:
        found.append(dict(message))
        if message.get("tool_calls"):
            calls, waiting = [], []
            for call in message["tool_calls"]:
                count, function = count + 1, dict(call["function"])
                if form.text:
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                own = {"id": f"call{count:05d}"} if form.ids else {}
                calls.append({**call, **own, "function": function})
                waiting.append({"tool_call_id": f"call{count:05d}", "name": function["name"]})
            found[-1]["tool_calls"] = calls
            if form.null and not message["content"]:
                found[-1]["content"] = None
        elif form.ids and message["role"] == "tool" and waiting:
            found[-1] |= waiting.pop(0) if len(waiting) > 1 else waiting[0]
    return found


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
