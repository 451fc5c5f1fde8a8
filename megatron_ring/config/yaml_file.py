"""Configurations as YAML: what a run directory's config.yaml holds, and a configuration from one. pydantic checks it."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megatron_ring.config.checks import check_numbers
from megatron_ring.config.metadata import did_you_mean, names_of
from megatron_ring.errors import UserError

T = TypeVar("T")

EXPECTED = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "tuple_type": "a list",
            "string_type": "a text in quotes", "dataclass_type": "a group of settings"}  # fmt: skip


FLOAT_OF_YAML_1_2 = ("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), None)


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


class _Loader(yaml.SafeLoader):
    """1e-4 is a number, which YAML 1.1 takes for a text, and a day is a text."""


class _Dumper(yaml.SafeDumper):
    """Puts texts in quotes that `_Loader` would take for numbers."""


_Loader.add_implicit_resolver(*FLOAT_OF_YAML_1_2)
_Dumper.add_implicit_resolver(*FLOAT_OF_YAML_1_2)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def load_config(kind: type[T], path: Path) -> T:
    """Build a configuration from the config.yaml that a run wrote, or from one that was edited since.

    Raises:
        UserError: no such file, or it does not describe this kind of run. Names the file and the setting.
    """
    try:
        return build_config(kind, read_yaml(path))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None


def read_yaml(path: Path, what: str = "a run's configuration") -> dict[str, Any]:
    """What a config.yaml, or another file of settings, holds. Raises `UserError`, which does not name the file."""
    try:
        values = yaml.load(path.read_text(), Loader=_Loader)
    except OSError as error:
        raise UserError(str(error.strerror)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8
        raise UserError(f"not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"not {what}")
    return values


def build_config(kind: type[T], values: dict[str, Any]) -> T:
    """A configuration from a config.yaml's values. Raises `UserError`, which names the setting."""
    from pydantic import TypeAdapter, ValidationError

    # A list of one: pydantic takes options for plain types alone, and hands them on to the dataclasses inside.
    one: Any = types.GenericAlias(list, (kind,))
    adapter: TypeAdapter[list[T]] = TypeAdapter(one, config={"extra": "forbid", "strict": True})
    try:
        text = json.dumps([{name: value for name, value in values.items() if name != "stage"}])
        built = adapter.validate_json(text)[0]
    except ValidationError as refused:
        mistakes = refused.errors()
        unknown = [mistake for mistake in mistakes if mistake["type"] == "unexpected_keyword_argument"]
        raise UserError(_describe((unknown or mistakes)[0], kind)) from None
    except (TypeError, ValueError, RecursionError) as error:  # what JSON has not: sets, circles
        raise UserError(f"not a run's configuration: {error}") from None
    check_numbers(built)
    return built


def _describe(mistake: Any, kind: Any) -> str:
    """One of pydantic's errors with the setting's dotted name."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in mistake["loc"][1:]).removeprefix(".")
    if mistake["type"] == "unexpected_keyword_argument":
        return f"unknown setting {name}{did_you_mean(name, names_of(kind))}"
    if mistake["type"] == "missing":
        return f"{name} is missing, and has no default"
    if mistake["type"] == "literal_error":
        return f"{name} is {mistake['input']!r}: use one of {mistake['ctx']['expected']}"
    return f"{name} is {mistake['input']!r}, not {EXPECTED.get(mistake['type']) or mistake['msg']}"
