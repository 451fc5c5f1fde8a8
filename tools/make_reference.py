#!/usr/bin/env python
"""Write docs/reference/flags.md: every flag of every main, from the configurations that the mains are built on.

python tools/make_reference.py
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import pkgutil
import textwrap
import types
import typing
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typing_extensions import Doc

from megatron_ring import config
from megatron_ring.config.metadata import changeable, flag_of, types_of
from megatron_ring.config.stage import StageConfig, TrainingConfig
from megatron_ring.data.writing import write_atomically
from megatron_ring.errors import run_main

PAGE = Path(__file__).resolve().parents[1] / "docs/reference/flags.md"
VALUES = {int: "whole number", float: "number", str: "text", Path: "path"}
INTRODUCTION = """# Flags

`tools/make_reference.py` writes this page from the configurations. Each main prints the same with `--help`.

Every main also takes `--config FILE`: the config.yaml of a run gives the defaults, and flags override them. A switch is set
by its flag. The same flag with `no-` before its last name clears it, as in `--no-async-save`. Where the default is empty,
the flag's meaning explains it. Flags marked with ↻ may change when a run is continued.
"""


def stages() -> dict[str, Any]:
    """The configuration of each main by its name."""
    for module in pkgutil.iter_modules(config.__path__):
        importlib.import_module(f"{config.__name__}.{module.name}")
    queue, found = [StageConfig], {}
    for kind in queue:
        queue += kind.__subclasses__()
        if kind.stage_name and kind.__module__.startswith(f"{config.__name__}."):  # tools have some of their own
            found[kind.stage_name] = kind
    return dict(sorted(found.items()))


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_atomically(PAGE, reference().encode())
    print(f"{PAGE.name}: written")


def reference() -> str:
    """The page, one section for each main."""
    return "\n".join([INTRODUCTION, *(_section(name, kind) for name, kind in stages().items())])


def _section(name: str, kind: type) -> str:
    may_change = changeable(kind) if issubclass(kind, TrainingConfig) else frozenset()
    text = f"## {name}\n\n`python -m megatron_ring.{name}`. {_summary(kind)}\n"
    return "\n".join([text, *_tables(kind, "", None, may_change)])


def _tables(kind: Any, prefix: str, group: Any, may_change: frozenset[str]) -> list[str]:
    """The table of a group's own settings, then those of the groups within. `group` holds the defaults, where there are."""
    texts, rows, inner = help_texts(kind), [], []
    for field in dataclasses.fields(kind):
        hint, name = types_of(kind)[field.name], f"{prefix}{field.name}"
        default = _default(field) if group is None else getattr(group, field.name)
        if dataclasses.is_dataclass(hint):
            within = None if default is dataclasses.MISSING else default
            heading = f"### {flag_of(name)}\n\n{_summary(hint)}\n"
            inner += [heading, *_tables(hint, f"{name}.", within, may_change)]
            continue
        mark = " ↻" if name in may_change else ""
        cells = (f"`{flag_of(name)}`{mark}", _value(hint), _shown(default), " ".join(texts[field.name].split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    head = ["| flag | value | default | meaning |", "|---|---|---|---|"]
    return ["\n".join([*head, *rows]) + "\n", *inner]


def help_texts(kind: Any) -> dict[str, str]:
    """What the settings of a dataclass say of themselves: the text below a field, or its `Doc`."""
    texts: dict[str, str] = {}
    owners: list[Any] = [owner for owner in reversed(kind.__mro__) if dataclasses.is_dataclass(owner)]
    for owner in owners:
        [node] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                texts[field.target.id] = str(text.value.value)
    hints = typing.get_type_hints(kind, include_extras=True)
    notes = [(name, note) for name, hint in hints.items() for note in getattr(hint, "__metadata__", ())]
    return texts | {name: note.documentation for name, note in notes if isinstance(note, Doc)}


def _summary(kind: Any) -> str:
    return " ".join(inspect.getdoc(kind).split("\n\n")[0].split())  # type: ignore[union-attr]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value(hint: Any) -> str:
    """What a flag takes, in words."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        return _value(next(option for option in get_args(hint) if option is not type(None))).replace("switch", "True, False")
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return f"{_value(get_args(hint)[0])}s"
    return "switch" if hint is bool else VALUES[hint]


def _shown(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "required"
    if isinstance(default, bool):
        return "on" if default else "off"
    return "" if default is None or default == () else f"`{default}`"


if __name__ == "__main__":
    run_main(main)
