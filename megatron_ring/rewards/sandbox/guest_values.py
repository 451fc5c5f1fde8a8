"""Python values as JSON, both ways, inside the sandbox and outside: only plain data crosses, never code.

JSON's own types stand for themselves; other plain types are `{"$": type, "v": …}`. Subclasses become their base, so a
value with its own `__eq__` arrives without it.
"""

from __future__ import annotations

import collections
import json
from typing import Any

_BIG = 1 << 63


def encode(value: Any) -> Any:
    """A JSON-able form of plain data; raises TypeError for anything else."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        value = int.__int__(value)
        return value if -_BIG < value < _BIG else {"$": "int", "v": hex(value)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, (list, collections.deque)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"$": "dict", "v": [[encode(key), encode(item)] for key, item in value.items()]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {"$": kind.__name__, "v": [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"$": "complex", "v": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"$": "bytes", "v": bytes(value).hex()}
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return encode(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} is not plain data")


def decode(value: Any) -> Any:
    """The value that `encode` wrote; raises ValueError, TypeError or RecursionError for anything else."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value.get("$"), value.get("v")
    if kind == "int" and isinstance(content, str):
        return int(content, 16)
    if kind == "bytes" and isinstance(content, str):
        return bytes.fromhex(content)
    if not isinstance(content, list):
        raise ValueError("not an encoded value")
    items = [decode(item) for item in content]
    if kind == "dict":
        return {key: item for key, item in items}
    if kind == "complex":
        return complex(*items)
    kinds: dict[Any, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if kind not in kinds:
        raise ValueError("not an encoded value")
    return kinds[kind](items)


def dumps(value: Any) -> bytes:
    """`encode` as one line of ASCII bytes."""
    return json.dumps(encode(value)).encode("ascii") + b"\n"


def loads(line: bytes) -> Any:
    """`decode` of one line."""
    return decode(json.loads(line))
