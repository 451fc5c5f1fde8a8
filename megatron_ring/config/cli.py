"""Command lines out of frozen dataclasses (tyro), with `--config FILE` and one-line errors."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any, TypeVar

from megatron_ring.config.checks import check_numbers
from megatron_ring.config.metadata import did_you_mean, flag_of, names_of
from megatron_ring.config.yaml_file import load_config
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

    # Help is in docstrings. Comments are not for users, and looking for them takes a third of the time.
    kwargs: dict[str, Any] = {"config": (tyro.conf.HelptextFromCommentsOff,)}
    if default is not None:
        kwargs["default"] = default
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
        flag = unknown[0].split("=")[0]
        hint = did_you_mean(flag, [flag_of(name) for name in names_of(config)])
        raise UserError(f"unknown flag {flag}{hint} (see {prog} --help)")
    check_numbers(parsed)
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


def _one_line(boxed: str) -> str:
    """The message inside one of tyro's boxes, as one line."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", boxed).splitlines()]
    kept = [line for line in lines if line and "--help" not in line and line != "Parsing error"]
    return re.sub(r"\s+", " ", " ".join(kept)).removeprefix("Parsing error ") or "the command line is not valid"
