"""Command lines out of frozen dataclasses (tyro), with `--config FILE` and one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from megatron_ring.config.metadata import types_of
from megatron_ring.errors import UserError

T = TypeVar("T")


def parse(config: type[T], prog: str, description: str, argv: list[str] | None = None) -> T:
    """The configuration that a command line states.

    `--config FILE` takes a run directory's config.yaml as defaults; flags override it.

    Raises:
        UserError: an unknown flag, a malformed value, a missing required flag, a number that is not finite.
    """
    path, argv = _take_config(list(sys.argv[1:] if argv is None else argv))
    default = None if path is None else load_config(config, path)
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
    _check_numbers(parsed)
    return parsed


def _take_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """The file of `--config FILE` or `--config=FILE`, and the other arguments."""
    path, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, joined, value = argument.partition("=")
        if flag != "--config":
            rest.append(argument)
            continue
        value = value if joined else next(arguments, "")
        if not value:
            raise UserError("--config: give the config.yaml of a run directory")
        if path is not None:
            raise UserError("--config: give one file")
        path = Path(value)
    return path, rest


def _check_numbers(config: Any, prefix: str = "--") -> None:
    """Refuse numbers that no setting means: those that are not finite, and seeds beyond int64, which torch does not take."""
    for setting in dataclasses.fields(config):
        value, flag = getattr(config, setting.name), f"{prefix}{setting.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{flag}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number) and not setting.metadata.get("unlimited"):
                raise UserError(f"{flag} is {number}, not a finite number")
            if setting.name in ("seed", "seeds") and isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise UserError(f"{flag} is {number}, outside -2^63..2^63-1")


def _one_line(boxed: str) -> str:
    """The message inside one of tyro's boxes, as one line."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines()]
    kept = [line for line in lines if line and "--help" not in line and line != "Parsing error"]
    return re.sub(r"\s+", " ", " ".join(kept)).removeprefix("Parsing error ") or "the command line is not valid"


def _flags(config: Any, prefix: str = "--") -> list[str]:
    flags = []
    for name, hint in types_of(config).items():
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
    """Build a configuration from the config.yaml that a run wrote, or from one that was edited since.

    Raises:
        UserError: no such file, or it does not describe this kind of run. Names the file and the setting.
    """
    try:
        return build_config(config, read_yaml(path))
    except UserError as error:
        raise UserError(f"--config {path}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """What a config.yaml holds. Raises `UserError`, which does not name the file."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(str(error.strerror)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or no such day
        raise UserError(f"not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError("not a run's configuration")
    return values


def build_config(config: type[T], values: dict[str, Any]) -> T:
    """A configuration from a config.yaml's values. Raises `UserError`, which names the setting."""
    built: T = _build(config, {name: value for name, value in values.items() if name != "stage"}, "")
    _check_numbers(built)
    return built


def _build(kind: Any, value: Any, key: str) -> Any:
    """An instance of the type hint `kind` from what YAML made of the setting `key` (its dotted name)."""
    if get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _build(options[0], value, key)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, key)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{key} is {value!r}, not a list")
        return tuple(_build(get_args(kind)[0], item, f"{key}[{place}]") for place, item in enumerate(value))
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{key} is {value!r}: use one of {', '.join(map(str, get_args(kind)))}")
        return value
    return _scalar(kind, value, key)


def _build_dataclass(kind: Any, values: Any, key: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{key} is {values!r}, not a group of settings")
    hints, prefix = types_of(kind), f"{key}." if key else ""
    for name in values:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            raise UserError(f"unknown setting {prefix}{name}" + (f"; did you mean {prefix}{close[0]}?" if close else ""))
    for field in dataclasses.fields(kind):
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if field.name not in values and not has_default:
            raise UserError(f"{prefix}{field.name} is missing, and has no default")
    return kind(**{name: _build(hints[name], value, f"{prefix}{name}") for name, value in values.items()})


SCALARS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes", Path: "a path in quotes",
}  # fmt: skip


def _scalar(kind: Any, value: Any, key: str) -> Any:
    """Numbers may be texts, which YAML takes 1e-4 for: it has no point. Texts may not be numbers: 1.10 has lost its zero."""
    accepted = {bool: bool, int: int | str, float: int | float | str, str: str, Path: str}[kind]
    if isinstance(value, accepted) and (kind is bool or not isinstance(value, bool)):
        with contextlib.suppress(ValueError, OverflowError):
            return kind(value)
    raise UserError(f"{key} is {value!r}, not {SCALARS[kind]}")
