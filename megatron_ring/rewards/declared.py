"""Entries of declarations in JSON, checked as they are taken out; `UserError` says which is wrong."""

from __future__ import annotations

import math
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions.finding import shown


def check_entries(entry: Any, what: str, required: set[str], optional: set[str]) -> None:
    """Raise `UserError` unless `what` is an object with these keys and no other ones."""
    if not isinstance(entry, dict):
        raise UserError(f"{what} must be an object, not {type(entry).__name__}")
    for name in sorted(required - entry.keys()):
        raise UserError(f"{what} has no {name!r}")
    for name in sorted(map(str, entry.keys() - required - optional)):
        raise UserError(f"{what} has an unknown key {shown(name)}")


def list_of(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{what!r} must be a list, not {type(value).__name__}")
    return value


def text_of(entry: dict[str, Any], name: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name!r} must be text, not {shown(repr(value))}")
    return value


def number_of(entry: dict[str, Any], name: str, default: float, least: float = 0.0) -> float:
    """A number that is finite and at least `least`."""
    value = entry.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        said = f"of at least {least:g}" if math.isfinite(least) else "that is finite"
        raise UserError(f"{name!r} must be a number {said}, not {shown(repr(value))}")
    return float(value)
