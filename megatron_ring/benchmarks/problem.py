"""The record of a benchmark's problem, what a scorer says of a response, and the description of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# Goes into every result: a change of any prompt form or scorer makes it another benchmark.
FORM_VERSION = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        id: unique within the benchmark.
        prompt: the user's message, whole.
        answer: the reference, in the form that the scorer wants.
        domain: the verifier of rewards/ that scores it; empty where the benchmark's own scorer alone does.
        category: what results are also broken down by: a subject, a task, a level of difficulty.
        variants: further references by name, scored beside the first by the same verifier (IFEval's loose reading).
        metadata: what else is kept of the row.
        place: where it was read, FILE:LINE.
    """

    id: str
    prompt: str
    answer: Any
    domain: str = ""
    category: str = ""
    variants: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Grade:
    """What a scorer says of one response.

    Attributes:
        value: 0..1.
        given: the answer as it was found, in a form in which equal answers are equal texts; None: none was found.
        reason: one line.
    """

    value: float
    given: str | None
    reason: str


Row = Mapping[str, Any]
PlacedRow = tuple[str, Row]  # FILE:LINE, the row with its names in small letters
Scorer = Callable[[Problem, str], Grade | None]


@dataclass(frozen=True)
class Loaded:
    """The problems of a file, and what is to be said of how it was read."""

    problems: list[Problem]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is read, asked and scored.

    Attributes:
        read: rows of its files to problems. Raises `RowError` with the place.
        score: decides a response (the text after the thinking); None leaves it to the verifier of the problem's domain.
            Pure, linear in the text, evaluates nothing.
        samples: responses to each problem, by the protocol of the Ring-lite reports.
        metric: what the score is called where it is published.
        judged: how a language model has to decide (`judging.protocol`); empty: rules do.
        length: expected length of a response, relative to others: long ones are sampled first.
    """

    name: str
    title: str
    read: Callable[[Sequence[PlacedRow]], Loaded]
    samples: int
    metric: str
    score: Scorer | None = None
    judged: Literal["", "score", "rubric", "reference", "pairwise"] = ""
    length: int = 1
