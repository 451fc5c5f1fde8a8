"""What a setting says of itself besides type, default and help: metadata of the dataclasses' fields. Imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
import re
from typing import Any, get_type_hints

MAY_CHANGE: dict[str, Any] = {"may_change": True}
"""A continued run may change this setting; of a group, all settings in it."""
BY_CONTENT: dict[str, Any] = {"by_content": True}
"""A continued run may name another path here, where the same content lies."""
NOT_RECORDED: dict[str, Any] = {"recorded": False}
"""A run directory's config.yaml leaves this setting out: it changes nothing of a run."""
UNLIMITED: dict[str, Any] = {"unlimited": True}
"""This number may be infinite; all others are refused."""


def types_of(kind: Any) -> dict[str, Any]:
    """The type of each setting of a dataclass, by name, in order."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def names_of(kind: Any, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a dataclass."""
    names = []
    for name, inner in types_of(kind).items():
        names += names_of(inner, f"{prefix}{name}.") if dataclasses.is_dataclass(inner) else [f"{prefix}{name}"]
    return names


def flag_of(name: str) -> str:
    """The flag of a setting's dotted name."""
    return "--" + name.replace("_", "-")


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for a message: the known name that ends alike, or else is written alike; "" where there is none."""
    last = re.split(r"\.|--", name)[-1]
    alike = [other for other in known if re.split(r"\.|--", other)[-1] == last]
    alike = alike or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {alike[0]}?" if alike else ""


def changeable(kind: Any) -> frozenset[str]:
    """Dotted names of the settings of a dataclass that a continued run may change."""
    return frozenset(_marked(kind, "may_change", "", False))


def compared_by_content(kind: Any) -> frozenset[str]:
    """Dotted names of the paths of a dataclass that a continued run may change where the content is the same."""
    return frozenset(_marked(kind, "by_content", "", False))


def _marked(kind: Any, mark: str, prefix: str, whole: bool) -> list[str]:
    names, types = [], types_of(kind)
    for field in dataclasses.fields(kind):
        name, marked = f"{prefix}{field.name}", whole or field.metadata.get(mark, False)
        if dataclasses.is_dataclass(types[field.name]):
            names += _marked(types[field.name], mark, f"{name}.", marked)
        elif marked:
            names.append(name)
    return names
