"""Python values as JSON, both ways, inside the sandbox and outside: only plain data crosses, never code.

JSON's own types stand for themselves; other plain types are `{"$": type, "v": …}`. Subclasses become their base, so a
value with its own `__eq__` arrives without it.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from typing import Any

_BIG = 1 << 63


Hook = Callable[[Any], Any]


def encode(value: Any, other: Hook | None = None) -> Any:
    """A JSON-able form of plain data; what is none goes to `other`, or raises TypeError."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        value = int.__int__(value)
        return value if -_BIG < value < _BIG else {"$": "int", "v": hex(value)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (list, collections.deque)):
        return [encode(item, other) for item in value]
    if isinstance(value, dict):
        return {"$": "dict", "v": [[encode(key, other), encode(item, other)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {"$": kind.__name__, "v": [encode(item, other) for item in value]}
    if isinstance(value, complex):
        return {"$": "complex", "v": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "v": bytes(value).hex()}
    if hasattr(type(value), "tolist"):  # numpy's arrays and scalars
        return encode(value.tolist(), other)
    if other is not None:
        return other(value)
    raise TypeError(f"a value of type {type(value).__name__} is not plain data")


def decode(value: Any, other: Hook | None = None) -> Any:
    """The value that `encode` wrote; raises ValueError, TypeError or RecursionError for anything else."""
    if isinstance(value, list):
        return [decode(item, other) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value.get("$"), value.get("v")
    if kind == "int" and isinstance(content, str):
        return int(content, 16)
    if kind == "bytes" and isinstance(content, str):
        return bytes.fromhex(content)
    kinds: dict[Any, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if other is not None and kind not in kinds and kind not in ("dict", "complex"):
        return other(value)
    if not isinstance(content, list):
        raise ValueError("not an encoded value")
    items = [decode(item, other) for item in content]
    if kind == "dict":
        return {key: item for key, item in items}
    if kind == "complex":
        return complex(*items)
    if kind not in kinds:
        raise ValueError("not an encoded value")
    return kinds[kind](items)


def dumps(value: Any, other: Hook | None = None) -> bytes:
    """`encode` as one line of ASCII bytes."""
    return json.dumps(encode(value, other)).encode("ascii") + b"\n"


def loads(line: bytes, other: Hook | None = None) -> Any:
    """`decode` of one line."""
    return decode(json.loads(line), other)
