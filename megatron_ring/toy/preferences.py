"""Planted preferences: a model solution against the same with one flaw, so that it is known which is better, and why.

| flaw | the rejected answer |
|---|---|
| `format` | says the answer without `\\boxed{}` |
| `repetition` | has one of its lines several times |
| `truncated` | ends before the answer |
| `answer` | has another number in the box than it came to |
| `other` | answers another question |

Flaws make answers longer as often as shorter: length alone tells nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_ring.errors import UserError

FLAWS = ("format", "repetition", "truncated", "other", "answer")
PLAIN = FLAWS[:4]
"""Flaws that a model of a million parameters learns to see within minutes; the fifth wants the sums compared."""
_BOX = re.compile(r"\\boxed\{(.*)\}\s*\Z", re.S)


@dataclass(frozen=True)
class Solution:
    """A question and its model solution, which ends in `\\boxed{…}`."""

    prompt: str
    response: str


@dataclass(frozen=True)
class PlantedPair:
    """A question, its solution, and the same with a flaw."""

    prompt: str
    chosen: str
    rejected: str
    flaw: str


def planted_pairs(solutions: Sequence[Solution], seed: int, flaws: Sequence[str] = PLAIN) -> Iterator[PlantedPair]:
    """A pair for each solution, flaws in turn; the same arguments give the same pairs.

    Raises:
        UserError: an unknown flaw, fewer than two solutions, or one that does not end in a box.
    """
    unknown = next((flaw for flaw in flaws if flaw not in FLAWS), None)
    if unknown is not None or not flaws:
        raise UserError(f"unknown flaw {unknown!r}: use {', '.join(FLAWS)}")
    if len(solutions) < 2:
        raise UserError("planted preferences need two solutions or more")
    rng = random.Random(f"{seed}/preferences")
    for number, solution in enumerate(solutions):
        if _BOX.search(solution.response) is None:
            raise UserError(f"solution {number + 1} does not end in \\boxed{{…}}: {solution.response[-40:]!r}")
        flaw = flaws[number % len(flaws)]
        other = solutions[(number + rng.randrange(1, len(solutions))) % len(solutions)]
        yield PlantedPair(solution.prompt, solution.response, _flawed(solution.response, flaw, other.response, rng), flaw)


def _flawed(response: str, flaw: str, other: str, rng: random.Random) -> str:
    box = _BOX.search(response)
    assert box is not None
    if flaw == "format":
        return response[: box.start()] + box[1]
    if flaw == "repetition":
        lines = response.split("\n")
        place = rng.randrange(len(lines))
        return "\n".join([*lines[:place], *[lines[place]] * rng.randint(2, 4), *lines[place + 1 :]])
    if flaw == "truncated":
        return response[: rng.randrange(1, box.start())].rstrip() if box.start() > 1 else box[1]
    if flaw == "answer":
        return f"{response[: box.start()]}\\boxed{{{_another(box[1], rng)}}}"
    return other if other != response else response[: box.start()] + box[1]


def _another(answer: str, rng: random.Random) -> str:
    """An answer with another number in it, as long where that can be."""
    digits = list(re.finditer(r"\d", answer))
    if not digits:
        return f"{answer}1"
    place = rng.choice(digits).start()
    new = rng.choice([digit for digit in "123456789" if digit != answer[place]])
    return f"{answer[:place]}{new}{answer[place + 1 :]}"
