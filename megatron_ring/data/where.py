"""Conditions on prompts: which of a file's prompts a part of a stage takes, by their domain and metadata.

where: {subject: 51 Geometry, level: [4, 5], difficulty: {min: 0.2, below: 0.8}, source: {not: aops}}
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_ring.config.checks import require
from megatron_ring.data.records import PromptRecord

_BOUNDS = ("min", "max", "below", "not")
_BIN = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Condition:
    """What one field must be.

    Attributes:
        field: `domain`, or a field of metadata; dots go into objects.
        values: any of these; empty: whatever the bounds allow.
        excluded: none of these.
        low, high: bounds of a number, both included.
        below: what it is less than.
    """

    field: str
    values: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf

    @classmethod
    def parse(cls, field: str, wanted: Any, where: str) -> Condition:
        """From a value, a list of values, or {min, max, below, not}. Raises `UserError`, which begins with `where`."""
        said = f"{where}: 'where': {field}"
        if not isinstance(wanted, Mapping):
            return cls(field, _values(wanted, said))
        unknown = next((key for key in wanted if key not in _BOUNDS), None)
        require(unknown is None and bool(wanted), f"{said}: use a value, a list of values, or {', '.join(_BOUNDS)}")
        for name in ("min", "max", "below"):
            bound = wanted.get(name, 0)
            number = isinstance(bound, int | float) and not isinstance(bound, bool)
            require(number, f"{said}: {name} is {bound!r}: make it a number")
        low, high = float(wanted.get("min", -math.inf)), float(wanted.get("max", math.inf))
        require(low <= high, f"{said}: min {low:g} is above max {high:g}")
        below = float(wanted.get("below", math.inf))
        require(low < below, f"{said}: min {low:g} is not below {below:g}")
        return cls(field, (), _values(wanted["not"], said) if "not" in wanted else (), low, high, below)

    def holds(self, record: PromptRecord) -> bool:
        """Whether a prompt is so. One without the field never is."""
        value = field_of(record, self.field)
        if value is None:
            return False
        text = as_text(value)
        if self.values and text not in self.values:
            return False
        if text in self.excluded:
            return False
        if (self.low, self.high, self.below) == (-math.inf, math.inf, math.inf):
            return True
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= float(value) <= self.high and float(value) < self.below

    def __str__(self) -> str:
        bounds = [f">={self.low:g}"] * (self.low > -math.inf) + [f"<={self.high:g}"] * (self.high < math.inf)
        bounds += [f"<{self.below:g}"] * (self.below < math.inf)
        said = "|".join(self.values) or ",".join(bounds)
        return f"{self.field}={said}" + (f"!{'|'.join(self.excluded)}" if self.excluded else "")


def by_weights(field: str, keys: Iterable[Any], where: str) -> list[Condition]:
    """What each key of `weights` takes: a value, or `LOW..HIGH`, a bin of numbers. A bin ends before HIGH where another
    begins there, so that bins which touch have no number twice. Raises `UserError`, which begins with `where`."""
    texts = [as_text(key) for key in keys]
    edges = {text: (float(found[1]), float(found[2])) for text in texts if (found := _BIN.fullmatch(text))}
    starts = {low for low, _ in edges.values()}
    ordered = sorted(edges.values())
    for text, (low, high) in edges.items():
        require(low < high, f"{where}: 'weights': {text} is empty: give the smaller number first")
    crossing = any(after[0] < before[1] for before, after in itertools.pairwise(ordered))
    require(not crossing, f"{where}: 'weights': two bins of {field} overlap: let each begin where the one before ends")
    conditions = []
    for text in texts:
        if text not in edges:
            conditions.append(Condition(field, (text,)))
            continue
        low, high = edges[text]
        bounds = (math.inf, high) if high in starts else (high, math.inf)  # up to and with, below
        conditions.append(Condition(field, (), (), low, *bounds))
    return conditions


def _values(wanted: Any, said: str) -> tuple[str, ...]:
    values = wanted if isinstance(wanted, list) else [wanted]
    plain = bool(values) and all(isinstance(value, str | int | float) for value in values)
    require(plain, f"{said} is {wanted!r}: give a value, or a list of values")
    return tuple(as_text(value) for value in values)


def as_text(value: Any) -> str:
    """A value as it is compared: 3 and 3.0 are the same, and so are 3 and its text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def field_of(record: PromptRecord, field: str) -> Any:
    """The domain, or a field of metadata; None where it is not there."""
    if field == "domain":
        return record.domain
    value: Any = record.metadata
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
