"""Solve rates: what several sampled responses to a problem say of the problem, and of its given answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_ring.rewards.boxed import last_boxed
from megatron_ring.rewards.math import CORRECT, quick_compare

_WHOLE = re.compile(r"-?[0-9]{1,18}")
MAJORITY = 0.5  # more than this share of the responses must agree to contradict the given answer


@dataclass(frozen=True)
class SolveRate:
    """Of one problem.

    Attributes:
        samples: responses that were scored.
        rate: share with a reward of at least 1.
        majority: the boxed answer that most responses give; None where none gives one.
        majority_share: share of all responses that give it.
        majority_agrees: whether the verifier accepts it; None without a majority.
        mean_tokens: of a response; None where nobody counted.
        truncated: share that the length limit cut.
    """

    samples: int
    rate: float
    majority: str | None
    majority_share: float
    majority_agrees: bool | None
    mean_tokens: float | None
    truncated: float

    @property
    def verdict(self) -> str | None:
        """`contradicted`: no response is right and more than half agree on another answer; `always` or `never` solved; None
        for problems that are worth training on."""
        if self.rate == 0 and self.majority_agrees is False and self.majority_share > MAJORITY and self.samples > 1:
            return "contradicted"
        return "always" if self.rate == 1 else "never" if self.rate == 0 else None

    def metadata(self) -> dict[str, Any]:
        """What goes into a row's metadata."""
        found: dict[str, Any] = {
            "solve_rate": round(self.rate, 6), "difficulty": round(1 - self.rate, 6), "solve_samples": self.samples,
            "truncated_share": round(self.truncated, 6),
        }  # fmt: skip
        if self.majority is not None:
            found |= {"majority_answer": self.majority, "majority_share": round(self.majority_share, 6),
                      "majority_agrees": self.majority_agrees}  # fmt: skip
        return found if self.mean_tokens is None else {**found, "mean_tokens": round(self.mean_tokens, 1)}


def solve_rate(samples: Sequence[Mapping[str, Any]]) -> SolveRate:
    """From rows {response, reward, tokens?, finish_reason?}, in any order: the result does not depend on it.

    Answers are the same where plain comparison says so; what takes algebra counts as different.
    """
    count = len(samples)
    ordered = sorted(samples, key=lambda sample: str(sample["response"]))
    right = sum(sample["reward"] >= 1 for sample in samples)
    groups: list[tuple[str, list[Mapping[str, Any]]]] = []
    for sample in ordered:
        answer = last_boxed(str(sample["response"]))
        if answer is None or not answer.strip():
            continue
        own = next((members for said, members in groups if _same(answer, said)), None)
        if own is None:
            groups.append((answer.strip(), [sample]))
        else:
            own.append(sample)
    best = max(groups, key=lambda group: len(group[1]), default=None)
    tokens = [sample["tokens"] for sample in samples if isinstance(sample.get("tokens"), int)]
    return SolveRate(
        count,
        right / count,
        None if best is None else best[0],
        0.0 if best is None else len(best[1]) / count,
        None if best is None else any(sample["reward"] >= 1 for sample in best[1]),
        sum(tokens) / len(tokens) if tokens else None,
        sum(sample.get("finish_reason") == "length" for sample in samples) / count,
    )


def _same(one: str, other: str) -> bool:
    one = one.strip()
    if _WHOLE.fullmatch(one) and _WHOLE.fullmatch(other):  # the most of them, and a hundredth of a comparison's work
        return int(one) == int(other)
    return one == other or quick_compare(one, other) == CORRECT
