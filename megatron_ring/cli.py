"""Command lines out of frozen dataclasses (tyro), with `--config FILE` and one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from megatron_ring.errors import UserError

T = TypeVar("T")


def parse(config: type[T], prog: str, description: str, argv: list[str] | None = None) -> T:
    """The configuration that a command line states.

    `--config FILE` takes a run directory's config.yaml as defaults; flags override it.

    Raises:
        UserError: an unknown flag, a malformed value, a missing required flag.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    default = None
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 >= len(argv):
            raise UserError("--config: give the config.yaml of a run directory")
        default = load_config(config, Path(argv[at + 1]))
        del argv[at : at + 2]
    import tyro

    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            parsed, unknown = tyro.cli(
                config, prog=prog, description=description, args=argv, return_unknown_args=True, **kwargs
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise UserError(f"{_one_line(output.getvalue())} (see {prog} --help)") from None
    if unknown:
        raise UserError(f"unknown flag {unknown[0]}{_hint(unknown[0], config)} (see {prog} --help)")
    return parsed


def _one_line(boxed: str) -> str:
    """The message inside one of tyro's boxes, as one line."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines()]
    kept = [line for line in lines if line and "--help" not in line and line != "Parsing error"]
    return re.sub(r"\s+", " ", " ".join(kept)).removeprefix("Parsing error ") or "the command line is not valid"


def _flags(config: Any, prefix: str = "--") -> list[str]:
    flags = []
    for name, hint in get_type_hints(config).items():
        flag = f"{prefix}{name.replace('_', '-')}"
        flags += _flags(hint, f"{flag}.") if dataclasses.is_dataclass(hint) else [flag]
    return flags


def _hint(flag: str, config: Any) -> str:
    flag = flag.split("=")[0]
    known = _flags(config)
    close = [k for k in known if k.split(".")[-1] == flag.removeprefix("--").split(".")[-1]]
    close = close or difflib.get_close_matches(flag, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def load_config(config: type[T], path: Path) -> T:
    """Build a configuration from the config.yaml that a run wrote.

    Raises:
        UserError: no such file, or it does not describe this kind of run.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: not a run's configuration")
    values.pop("stage", None)
    return _build(config, values, str(path))


def _build(kind: Any, values: Any, where: str) -> Any:
    if get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if values is None else _build(options[0], values, where)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise UserError(f"{where}: unknown setting {unknown[0]}")
        assert isinstance(kind, type)
        return kind(**{name: _build(hints[name], value, f"{where}: {name}") for name, value in values.items()})
    if get_origin(kind) is tuple:
        return tuple(_build(get_args(kind)[0], value, where) for value in values)
    return Path(values) if kind is Path else values
