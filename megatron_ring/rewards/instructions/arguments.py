"""Arguments of instructions, read from the `kwargs` of a prompt file and checked before any response is judged.

A dataclass declares them: `num_words: int = integer()`. Keys whose value is null are ignored, because published files in
columns carry every key for every instruction. A missing, unknown or wrong argument is an error; nothing is made up for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from typing import Any

from megatron_ring.errors import UserError
from megatron_ring.rewards.instructions.finding import AT_LEAST, LESS_THAN, shown
from megatron_ring.rewards.instructions.text import plain_line_breaks

# They bound the work per response, which is the number of texts times their length times the response's.
MAX_TEXTS = 100
MAX_TEXT_CHARACTERS = 256
MAX_LONG_TEXT_CHARACTERS = 1 << 17

_LARGEST_INTEGER = 10**7


def integer(minimum: int = 0, default: Any = MISSING) -> Any:
    """A whole number of at least `minimum`. 3.0 is one too: tables of numbers with gaps come as floats."""
    return _field(functools.partial(_read_integer, minimum=minimum), default)


def relation() -> Any:
    """`less than` or `at least`."""
    return choice(LESS_THAN, AT_LEAST)


def choice(*options: str) -> Any:
    """One of these words."""
    return _field(functools.partial(_read_choice, options=options))


def text(limit: int = MAX_TEXT_CHARACTERS) -> Any:
    """Text that is not blank; outer white space is dropped."""
    return _field(functools.partial(_read_text, limit=limit))


def texts() -> Any:
    """A list, not empty, of texts."""
    return _field(_read_texts)


def letter() -> Any:
    """One character that is no white space, in lower case."""
    return _field(_read_letter)


def _field(read: Callable[[Any], Any], default: Any = MISSING) -> Any:
    return field(default=default, metadata={"read": read})


def read_arguments(declared: type, kwargs: Any) -> Any:
    """An instance of the dataclass `declared` from an instruction's kwargs: a dict, or None for no arguments.

    Raises:
        UserError: an argument is missing, unknown or of the wrong kind. The message names it.
    """
    if kwargs is None:
        kwargs = {}
    if not isinstance(kwargs, dict):
        raise UserError(f"kwargs must be an object, not {type(kwargs).__name__}")
    given = {name: value for name, value in kwargs.items() if value is not None}
    read = {}
    for argument in fields(declared):
        if argument.name not in given:
            if argument.default is MISSING:
                raise UserError(f"argument {argument.name!r} is missing")
            continue
        try:
            read[argument.name] = argument.metadata["read"](given.pop(argument.name))
        except ValueError as error:
            raise UserError(f"argument {argument.name!r} must be {error}") from None
    if given:
        known = ", ".join(repr(argument.name) for argument in fields(declared)) or "none"
        raise UserError(f"unknown argument {shown(str(min(given, key=str)))}: it takes {known}")
    return declared(**read)


# The readers raise ValueError with the words that follow "must be".


def _read_integer(value: Any, minimum: int) -> int:
    wanted = f"a whole number of at least {minimum}, not {shown(repr(value))}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(wanted)
    if not minimum <= value <= _LARGEST_INTEGER or value != int(value):
        raise ValueError(wanted)
    return int(value)


def _read_choice(value: Any, options: tuple[str, ...]) -> str:
    if value not in options:
        raise ValueError(f"{' or '.join(repr(option) for option in options)}, not {shown(repr(value))}")
    return str(value)


def _read_text(value: Any, limit: int = MAX_TEXT_CHARACTERS) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text that is not blank, not {shown(repr(value))}")
    if len(value) > limit:
        raise ValueError(f"text of at most {limit} characters, not {len(value)}")
    return plain_line_breaks(value).strip()


def _read_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"a list of texts, not {shown(repr(value))}")
    if len(value) > MAX_TEXTS:
        raise ValueError(f"a list of at most {MAX_TEXTS} texts, not {len(value)}")
    try:
        return tuple(_read_text(entry) for entry in value)
    except ValueError as error:
        raise ValueError(f"a list in which each entry is {error}") from None


def _read_letter(value: Any) -> str:
    if not isinstance(value, str) or len(value.strip()) != 1:
        raise ValueError(f"one character, not {shown(repr(value))}")
    return value.strip().lower()
