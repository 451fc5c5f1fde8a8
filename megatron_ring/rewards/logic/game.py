r"""What the logic games share: the record of a game, the shape of a problem, and how an answer is found and scored.

Every verifier reads text as data. It looks at one place only (the last `\boxed{...}` or the last fenced block, as the
prompt says), caps what it reads, and takes time linear in it, so that no response can hang or crash the caller. ASCII
whitespace never matters inside an answer; everything else does.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from megatron_ring.errors import UserError
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.interface import Reward, ScoreRequest

DIFFICULTIES = (1, 2, 3, 4, 5)
MAX_RESPONSE_CHARACTERS = 1_000_000
MAX_ANSWER_CHARACTERS = 4096
CORRECT = Reward(1.0, "correct")

_BLANKS = " \t\r"
_FENCE = re.compile(r" {0,3}(`{3,})[ \t]*([A-Za-z0-9_+-]*)[ \t\r]*")

_Instance = TypeVar("_Instance")


@dataclass(frozen=True, slots=True)
class Game:
    """One logic game.

    Attributes:
        name: as in the domain `logic/NAME`.
        generate: (seed, difficulty) -> a problem, the JSON object {id, domain, prompt, answer, metadata}. `answer` is the
            instance, as the verifier wants it; `metadata["witness"]` is one answer that the verifier accepts. The same
            arguments give the same problem. Raises `UserError` for an unknown difficulty.
        score: decides any response in linear time: 1, or 0 with the first violated constraint.
        solve: (instance, limit) -> at most `limit` different answers, the reference solver. Meant for instances of the
            generator's sizes; it may be slow.
        respond: puts an answer where the verifier looks for it.
        read: the instance out of an `answer`, as `score` reads it. Raises `MalformedInstance`.
        difficulties: what `generate` takes, easy to hard.
    """

    name: str
    generate: Callable[[int, int], dict[str, Any]]
    score: Callable[[ScoreRequest], Reward]
    solve: Callable[[Any, int], list[str]]
    respond: Callable[[str], str]
    read: Callable[[Any], Any]
    difficulties: tuple[int, ...] = DIFFICULTIES


class Violation(Exception):
    """The constraint that an answer violates, in one line."""


class MalformedInstance(ValueError):
    """What is wrong with an instance (the `answer` of a prompt file)."""


def generator_of(name: str, seed: int, difficulty: int, salt: str = "") -> random.Random:
    """The source of randomness of one problem: a text seed is hashed, so neighbouring seeds share nothing."""
    if difficulty not in DIFFICULTIES:
        raise UserError(f"difficulty {difficulty} of {name}: choose one from {DIFFICULTIES[0]} to {DIFFICULTIES[-1]}")
    return random.Random(f"{name}/{difficulty}/{seed}/{salt}")


def make_problem(
    name: str, seed: int, difficulty: int, prompt: str, answer: dict[str, Any], witness: str, **more: Any
) -> dict[str, Any]:
    """A row of a prompt file. Its id is a hash of the prompt: the same problem has the same id under any seed."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()
    metadata = {"game": name, "difficulty": difficulty, "seed": seed, "witness": witness, **more}
    row = {"id": f"{name}-{digest}", "domain": f"logic/{name}", "prompt": prompt, "answer": answer}
    return {**row, "metadata": metadata}


def read_reference(read: Callable[[Any], _Instance], answer: Any) -> _Instance:
    """The instance out of an `answer`, by its reader. Raises `UserError` in place of `MalformedInstance`."""
    try:
        return read(answer)
    except MalformedInstance as error:
        raise UserError(f"the reference is malformed: {error}") from None


def boxed_score(
    read: Callable[[Any], _Instance], check: Callable[[_Instance, str], None]
) -> Callable[[ScoreRequest], Reward]:
    r"""The verifier of a game whose answer stands in the last `\boxed{...}`.

    Args:
        read: the instance out of the request's `answer`; raises `MalformedInstance`.
        check: raises `Violation` unless the text solves the instance.
    """
    return _score_with(last_boxed, "no boxed answer", read, check)


def fenced_score(
    read: Callable[[Any], _Instance], check: Callable[[_Instance, str], None]
) -> Callable[[ScoreRequest], Reward]:
    """The verifier of a game whose answer stands in the last fenced block; arguments as of `boxed_score`."""
    return _score_with(last_fenced, "no fenced block", read, check)


def _score_with(
    find: Callable[[str], str | None],
    nothing_found: str,
    read: Callable[[Any], _Instance],
    check: Callable[[_Instance, str], None],
) -> Callable[[ScoreRequest], Reward]:
    def score(request: ScoreRequest) -> Reward:
        if len(request.response) > MAX_RESPONSE_CHARACTERS:
            return Reward(0.0, f"the response has more than {MAX_RESPONSE_CHARACTERS} characters")
        text = find(request.response)
        if text is None:
            return Reward(0.0, nothing_found)
        if len(text) > MAX_ANSWER_CHARACTERS:
            return Reward(0.0, f"the answer has {len(text)} characters, more than {MAX_ANSWER_CHARACTERS}")
        if not text.strip(_BLANKS + "\n"):
            return Reward(0.0, "the answer is empty")
        try:
            check(read_reference(read, request.answer), text)
        except UserError as error:
            return Reward(0.0, str(error))
        except Violation as violation:
            return Reward(0.0, str(violation))
        return CORRECT

    return score


def last_fenced(text: str) -> str | None:
    """Content of the last complete block between two lines of three or more backticks; None when no block closes.

    The opening line may name a language; the closing one is at least as long, as in Markdown. A block left open, as in
    a response cut by its length limit, does not count.
    """
    content: str | None = None
    opened, begin, position = 0, 0, 0
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line) if "```" in line else None
        if fence is not None and not opened:
            opened, begin = len(fence[1]), position + len(line) + 1
        elif fence is not None and len(fence[1]) >= opened and not fence[2]:
            content, opened = text[begin : max(begin, position - 1)], 0
        position += len(line) + 1
    return content


def boxed(answer: str) -> str:
    r"""The answer in `\boxed{...}`."""
    return f"\\boxed{{{answer}}}"


def fenced(answer: str) -> str:
    """The answer in a fenced block."""
    return f"```\n{answer}\n```"


def read_grid(text: str, alphabet: str) -> list[str]:
    """Rows of one-character cells; blanks within a line and empty lines are dropped.

    Raises:
        Violation: a character that is not in `alphabet` (so never a digit of another script).
    """
    rows: list[str] = []
    for line in text.split("\n"):
        row = "".join(cell for cell in line if cell not in _BLANKS)
        for column, cell in enumerate(row, start=1):
            if cell not in alphabet:
                raise Violation(f"row {len(rows) + 1}, column {column}: {cell!a} is not one of {alphabet}")
        if row:
            rows.append(row)
    return rows


def require_shape(grid: Sequence[str], rows: int, columns: int) -> None:
    """Raise `Violation` unless the grid has that many rows, each with that many cells."""
    if len(grid) != rows:
        raise Violation(f"{len(grid)} rows instead of {rows}")
    for number, row in enumerate(grid, start=1):
        if len(row) != columns:
            raise Violation(f"row {number} has {len(row)} cells instead of {columns}")


def spaced(grid: Sequence[str]) -> str:
    """A grid for a prompt: cells apart, so that a tokenizer sees each of them."""
    return "\n".join(" ".join(row) for row in grid)


def excerpt(text: str) -> str:
    """A short one-line ASCII quotation of untrusted text for a reason."""
    quoted = ascii(text[:60])
    return quoted if len(quoted) <= 60 else quoted[:56] + "...'"


def field_of(answer: Any, name: str) -> Any:
    """One field of an instance. Raises `MalformedInstance` where it is missing."""
    if not isinstance(answer, dict) or name not in answer:
        raise MalformedInstance(f"it must be an object with {name!r}")
    return answer[name]


def whole_number(value: Any, name: str, low: int, high: int) -> int:
    """A checked integer of an instance. Raises `MalformedInstance`; true and 1.0 are no integers."""
    if type(value) is not int or not low <= value <= high:
        raise MalformedInstance(f"{name!r} must hold integers from {low} to {high}")
    return value


def text_grid(value: Any, name: str, alphabet: str, most: int) -> tuple[str, ...]:
    """A checked rectangle of an instance, rows of text with at most `most` cells a side. Raises `MalformedInstance`."""
    rows = value if isinstance(value, list) else []
    if not 1 <= len(rows) <= most or not all(isinstance(row, str) for row in rows):
        raise MalformedInstance(f"{name!r} must be a list of 1 to {most} rows of text")
    if not 1 <= len(rows[0]) <= most or any(len(row) != len(rows[0]) for row in rows):
        raise MalformedInstance(f"the rows of {name!r} must be equally long, 1 to {most} cells")
    if any(cell not in alphabet for row in rows for cell in row):
        raise MalformedInstance(f"{name!r} may hold only {alphabet}")
    return tuple(rows)
