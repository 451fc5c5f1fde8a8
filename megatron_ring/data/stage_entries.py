"""What an entry of a stage takes: a file, or the part of it that conditions choose, or several such parts in given
shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_ring.config.checks import require
from megatron_ring.data.records import PromptRecord
from megatron_ring.data.where import Condition, by_weights

KEYS = {"file", "domain", "weight", "where", "by", "weights"}
REST = "other"  # in `weights`: all prompts that no other value takes


@dataclass(frozen=True)
class Part:
    """Prompts of one file that are shuffled together.

    Attributes:
        conditions: all must hold.
        rest_of: what other parts take of one field; prompts of which any of it holds are left out.
        weight: relative to the other parts of the stage; None where none is given.
    """

    file: str
    domain: str | None
    conditions: tuple[Condition, ...] = ()
    rest_of: tuple[Condition, ...] = ()
    weight: int | float | Fraction | None = None

    def holds(self, record: PromptRecord) -> bool:
        """Whether it takes a prompt."""
        if self.domain not in (None, record.domain) or any(condition.holds(record) for condition in self.rest_of):
            return False
        return all(condition.holds(record) for condition in self.conditions)

    @property
    def suffix(self) -> str:
        """What tells it from other parts of the file, for names."""
        said = [self.domain] if self.domain else []
        said += [str(condition) for condition in self.conditions]
        said += [f"{self.rest_of[0].field}={REST}"] if self.rest_of else []
        return "".join("-" + re.sub(r"[^\w.=<>|,!]+", "-", text) for text in said)


def read_entry(entry: Mapping[str, Any], where: str) -> list[Part]:
    """The parts that an entry of `prompts` names. Raises `UserError`, which begins with `where`."""
    unknown = sorted(str(key) for key in entry.keys() - KEYS)
    require(not unknown, f"{where}: unknown key {', '.join(unknown)}: use {', '.join(sorted(KEYS))}")
    file, domain, weight = entry.get("file"), entry.get("domain"), entry.get("weight")
    require(isinstance(file, str) and file != "", f"{where}: an entry of 'prompts' has no 'file'")
    assert isinstance(file, str)
    require(domain is None or isinstance(domain, str), f"{where}: {file}: 'domain' is {domain!r}: make it text")
    require(weight is None or _positive(weight), f"{where}: {file}: 'weight' is {weight!r}: make it a positive number")
    wanted = entry.get("where", {})
    require(isinstance(wanted, Mapping), f"{where}: {file}: 'where' is not an object of fields")
    conditions = tuple(Condition.parse(str(field), value, f"{where}: {file}") for field, value in wanted.items())
    if "by" not in entry and "weights" not in entry:
        return [Part(file, domain, conditions, weight=weight)]
    field, weights = entry.get("by"), entry.get("weights")
    given = isinstance(field, str) and field != "" and isinstance(weights, Mapping) and len(weights) > 0
    require(given, f"{where}: {file}: 'by' names a field and 'weights' gives each of its values a number: give both")
    assert isinstance(field, str) and isinstance(weights, Mapping)
    for value, share in weights.items():
        require(_positive(share), f"{where}: {file}: 'weights': {value} is {share!r}: make it a positive number")
    named = [value for value in weights if value != REST]
    taken = by_weights(field, named, f"{where}: {file}")
    of = dict(zip(named, taken, strict=True))
    total = sum(Fraction(str(share)) for share in weights.values())
    parts = []
    for value, share in weights.items():
        own = Fraction(str(weight or 1)) * Fraction(str(share)) / total
        if value == REST:
            parts.append(Part(file, domain, conditions, tuple(taken), own))
        else:
            parts.append(Part(file, domain, (*conditions, of[value]), weight=own))
    return parts


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
