"""What a verifier takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward and why it was given, in words for the rollout file.

    Attributes:
        value: the reward; 1 for a correct answer and 0 otherwise where the domain is verifiable.
        reason: one line.
    """

    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One response to score. Every field must be JSON, it travels to another process.

    Attributes:
        domain: names the verifier, see `registry.VERIFIERS`.
        prompt: the prompt's text or chat messages; None where the verifier needs none.
        response: the sampled text.
        answer: the reference, in the form that the domain's verifier wants.
    """

    domain: str
    prompt: Any
    response: str
    answer: Any


@dataclass(frozen=True, slots=True)
class Verifier:
    """How one domain is scored.

    Attributes:
        score: decides any request. Runs in a worker process, where it may hang, crash or run out of memory.
        quick_score: decides what is certain within milliseconds, whatever the input, and returns None for the rest.
            Runs in the caller's process; None when the domain has no such cases.
    """

    score: Callable[[ScoreRequest], Reward]
    quick_score: Callable[[ScoreRequest], Reward | None] | None = None
