"""Recipes: which files are read and which steps they go through, from YAML. Errors name the file and the line.

    sources:
      - {name: gsm8k, files: gsm8k_train.jsonl}
      - {name: mine, files: [dump/*.parquet], fields: {prompt: question, answer: final}, domain: math, metadata: {level: 3}}
    steps:
      - clean: {multiple_choice: rewrite}
      - exact
      - near
      - decontaminate: {benchmarks: [aime24.jsonl]}
      - annotate

Files are looked for beside the recipe. A step without options is its name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_ring.config.checks import require
from megatron_ring.curation.options import STEPS, Options
from megatron_ring.data.fields import PROMPT_FIELDS
from megatron_ring.data.rows import SUFFIXES, suffix_of
from megatron_ring.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Source:
    """Files that are read alike.

    Attributes:
        name: comes first in the ids of its rows and is their `metadata.source`.
        files: paths, in the order in which they are read.
        fields: column by name of the contract, and `solution`; dots go into objects.
        domain: of rows that name none.
        metadata: added to that of each row.
        response: column with a teacher's responses; a row that holds several becomes several rows.
    """

    name: str
    files: tuple[Path, ...]
    fields: Mapping[str, str] = field(default_factory=dict)
    domain: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    response: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Sources, in order of preference, and steps, in the order in which they are done."""

    sources: tuple[Source, ...]
    steps: tuple[Options, ...]


class _Node(dict[str, Any]):
    """A mapping of YAML with the line that it begins on."""

    line: int = 0


class _Loader(yaml.SafeLoader):
    """Knows lines, and refuses a key that is given twice."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> _Node:
    found = _Node()
    found.line = node.start_mark.line + 1
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if str(key) in found:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
        found[str(key)] = loader.construct_object(value_node, deep=True)  # type: ignore[no-untyped-call]
    return found


def _text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_Loader.yaml_implicit_resolvers = {  # `off`, `no` and `yes` are texts, as in YAML 1.2: one is an option, one Norwegian
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def read_recipe(path: Path) -> Recipe:
    """A recipe of YAML. Raises `UserError` that names file and line of what is missing, unknown or malformed."""
    try:
        described = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: give the recipe, a YAML file") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}:1: not YAML: {error}") from None
    require(isinstance(described, _Node), f"{path}:1: expected 'sources' and 'steps'; docs/curation.md shows a recipe")
    _only(described, ("sources", "steps"), f"{path}:{described.line}")
    sources = described.get("sources")
    listed = isinstance(sources, list) and bool(sources) and all(isinstance(source, _Node) for source in sources)
    require(listed, f"{path}:{described.line}: 'sources' is not a list of objects with 'name' and 'files'")
    steps = described.get("steps")
    require(steps is None or isinstance(steps, list), f"{path}:{described.line}: 'steps' is not a list")
    read = tuple(_source(source, path) for source in sources)
    names = [source.name for source in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"{path}:{described.line}: two sources have the name {twice!r}: rename one")
    return Recipe(read, tuple(_step(step, path, described.line) for step in steps or ()))


def _source(node: _Node, path: Path) -> Source:
    where = f"{path}:{node.line}"
    _only(node, ("name", "files", "fields", "domain", "metadata", "response"), where)
    files = node.get("files")
    files = [files] if isinstance(files, str) else files
    usable = isinstance(files, list) and bool(files) and all(isinstance(file, str) and file for file in files)
    require(usable, f"{where}: 'files' is missing: give a path, a pattern like data/*.parquet, or a list of them")
    assert isinstance(files, list)
    found = tuple(each for file in files for each in find_files(file, path.parent, where))
    name = node.get("name", found[0].name.split(".")[0])
    usable = isinstance(name, str) and _NAME.fullmatch(name) is not None
    require(usable, f"{where}: 'name' is {name!r}: use letters, digits, '_', '.' and '-'")
    fields = node.get("fields") or {}
    require(isinstance(fields, dict), f"{where}: 'fields' is not an object of column names")
    known = (*PROMPT_FIELDS, "solution")
    for key, column in fields.items():
        require(key in known, f"{where}: 'fields' names {key!r}{_near(key, known)}: use {', '.join(known)}")
        require(isinstance(column, str) and column != "", f"{where}: 'fields': {key}: give the name of a column")
    domain, metadata = node.get("domain"), node.get("metadata") or {}
    require(domain is None or (isinstance(domain, str) and domain != ""), f"{where}: 'domain' is {domain!r}: make it text")
    require(isinstance(metadata, dict), f"{where}: 'metadata' is not an object")
    response = node.get("response")
    require(response is None or (isinstance(response, str) and response != ""), f"{where}: 'response': name a column")
    return Source(name, found, dict(fields), domain, _plain(metadata), response)


def find_files(pattern: str, folder: Path, where: str) -> list[Path]:
    """The data files of a path or pattern, sorted. Raises `UserError` where there is none."""
    path = folder / pattern
    if any(sign in pattern for sign in "*?["):
        anchor = Path(path.anchor or ".")
        found = sorted(
            each
            for each in anchor.glob(str(path.relative_to(path.anchor)))
            if each.is_file() and each.name.lower().endswith(SUFFIXES)
        )
        require(bool(found), f"{where}: {path}: no file of this pattern is one of {', '.join(SUFFIXES)}")
        return found
    require(not path.is_dir(), f"{where}: {path} is a folder: name its files, as in {pattern.rstrip('/')}/*.parquet")
    require(path.is_file(), f"{where}: {path}: no such file: check the path")
    suffix_of(path)
    return [path]


def read_value(text: str, where: str) -> Any:
    """A value of the command line as YAML has it. Raises `UserError`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise UserError(f"{where} {text}: not a value of YAML: put texts with special signs in quotes") from None


def _step(node: Any, path: Path, line: int) -> Options:
    if isinstance(node, str):
        name, given = node, _Node()
        given.line = line
    else:
        line = getattr(node, "line", line)
        single = isinstance(node, _Node) and len(node) == 1
        require(single, f"{path}:{line}: a step is its name, or its name with options, as in 'near: {{threshold: 0.8}}'")
        name, given = next(iter(node.items()))
        if given is None:
            given = _Node()
            given.line = line
    require(name in STEPS, f"{path}:{line}: unknown step {name!r}{_near(name, STEPS)}: use {', '.join(STEPS)}")
    require(isinstance(given, _Node), f"{path}:{line}: {name}: its options are not an object")
    return make_step(name, given, f"{path}:{line}: {name}", path.parent)


def make_step(name: str, given: Mapping[str, Any], where: str, folder: Path) -> Options:
    """The options of a step from plain values. Raises `UserError`, which begins with `where`."""
    kind = STEPS[name]
    hints = typing.get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]
    values = {}
    for key, value in given.items():
        require(key in names, f"{where}: unknown option {key!r}{_near(key, names)}: use {', '.join(names) or 'none'}")
        hint = hints[key]
        if hint == tuple[Path, ...]:
            files = [value] if isinstance(value, str) else value
            require(_texts(files), f"{where}: {key}: give a path or a list of them")
            values[key] = tuple(each for file in files for each in find_files(file, folder, where))
        elif hint == Path | None:
            require(isinstance(value, str), f"{where}: {key}: give a path")
            values[key] = folder / value
        else:
            values[key] = _checked(value, hint, f"{where}: {key}")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    """A value of the declared type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        require(value in arguments, f"{where} is {value!r}: use one of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _checked(value, next(each for each in arguments if each is not type(None)), where)
    if origin is tuple:
        listed = [value] if isinstance(value, str) else value
        require(_texts(listed), f"{where} is {value!r}: give a list of texts")
        for each in listed:
            _checked(each, arguments[0], where)
        return tuple(listed)
    if hint is bool:
        require(isinstance(value, bool), f"{where} is {value!r}: give true or false")
    elif hint is int:
        require(isinstance(value, int) and not isinstance(value, bool), f"{where} is {value!r}: give a whole number")
    elif hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        require(number, f"{where} is {value!r}: give a number")
        return float(value)
    elif hint is str:
        require(isinstance(value, str), f"{where} is {value!r}: give a text")
    return value


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _only(node: _Node, known: tuple[str, ...], where: str) -> None:
    unknown = next((key for key in node if key not in known), None)
    require(unknown is None, f"{where}: unknown key {unknown!r}{_near(str(unknown), known)}: use {', '.join(known)}")


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), 1)
    return f", did you mean {close[0]!r}?" if close else ""
