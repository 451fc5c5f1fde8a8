"""Scores of responses: by the benchmark's own scorer, else by a verifier of rewards/. A pure function of the problem and the
text: the same response has the same score in every run."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_ring.benchmarks.problem import Benchmark, Problem
from megatron_ring.benchmarks.quantities import reference_text
from megatron_ring.benchmarks.thinking import scored_text
from megatron_ring.rewards import Reward, RewardPool, ScoreRequest
from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.exact import parse_number
from megatron_ring.rewards.interface import MACHINE_FAILURE
from megatron_ring.rewards.math import CORRECT, quick_compare
from megatron_ring.rewards.normalise import clean

WAITS = "waits for a judge"


@dataclass(frozen=True)
class Outcome:
    """What became of one response.

    Attributes:
        score: 0..1; None where there is no verdict (the machine failed, or a judge is wanted).
        given: the answer, in a form in which equal answers are equal texts where that is known; None: none was found.
        truncated: it ended at its length limit, or its thinking never ended.
        parsed: an answer was found in it.
        variants: further scores by name.
    """

    benchmark: str
    id: str
    sample: int
    score: float | None
    given: str | None
    truncated: bool
    parsed: bool
    reason: str
    tokens: int
    category: str = ""
    variants: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The row of scores.jsonl."""
        return asdict(self)


@dataclass
class PendingOutcome:
    """An outcome that waits for verifiers."""

    outcome: Outcome
    reward: Future[Reward] | None = None
    variants: Mapping[str, Future[Reward]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return all(future.done() for future in (*self.variants.values(), *([self.reward] if self.reward else [])))

    def result(self) -> Outcome:
        """Waits. Raises what the pool's futures do."""
        if self.reward is None:
            return self.outcome
        reward = self.reward.result()
        further = {name: future.result().value for name, future in self.variants.items()}
        steps = reward.detail.get("instructions") or []
        if steps:
            further["instructions"] = sum(bool(followed) for _, followed in steps) / len(steps)
        score = None if MACHINE_FAILURE in reward.detail else reward.value
        return replace(self.outcome, score=score, reason=reward.reason, variants=further)


def submit(
    benchmark: Benchmark, problem: Problem, response: str, pool: RewardPool, *, sample: int, tokens: int,
    truncated: bool = False, opened: bool = False,
) -> PendingOutcome:  # fmt: skip
    """Begin to score one response.

    Args:
        tokens: of the response; 0 where nobody counted.
        truncated: it ended at its length limit.
        opened: the prompt has opened the thinking.

    Raises:
        UserError: the problem's verifier cannot work here.
    """
    text = scored_text(response, opened)
    outcome = Outcome(
        benchmark.name, problem.id, sample, 0.0, None, truncated or text is None, False, "the thinking never ends", tokens,
        problem.category,
    )  # fmt: skip
    if text is None:
        return PendingOutcome(outcome)
    if benchmark.judged:
        return PendingOutcome(replace(outcome, score=None, parsed=True, reason=WAITS))
    grade = benchmark.score(problem, text) if benchmark.score is not None else None
    if grade is not None:
        value = replace(outcome, score=grade.value, given=grade.given, parsed=grade.given is not None, reason=grade.reason)
        return PendingOutcome(value)
    typed = isinstance(problem.answer, dict) and problem.domain == "math"
    answer = reference_text(problem) if typed else problem.answer
    given = answer_key(text) if problem.domain in ("math", "science") else None
    parsed = given is not None if problem.domain in ("math", "science") else _has_answer(problem.domain, text)
    request = ScoreRequest(problem.domain, problem.prompt, text, answer, tokens)
    variants = {name: pool.submit(replace(request, answer=other)) for name, other in problem.variants.items()}
    return PendingOutcome(replace(outcome, given=given, parsed=parsed), pool.submit(request), variants)


def _has_answer(domain: str, text: str) -> bool:
    return "```" in text if domain == "code" else bool(text.strip())


def answer_key(text: str) -> str | None:
    """The boxed answer of a response: of a plain number its value, else its cleaned text."""
    boxed = last_boxed(text)
    if boxed is None:
        return None
    written = clean(boxed)[:2_000]
    number = parse_number(written)
    return written if number is None else str(number.value)


def same_answer(first: str, second: str) -> bool:
    """Whether two keys of `answer_key` are one answer, as far as that takes no algebra."""
    if len(first) > 200 or len(second) > 200:
        return False
    return quick_compare(first, second) == CORRECT
