"""What a study says of a claim: reproduced, not reproduced or undecided, by the interval of a difference over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_ring.analysis.spread import Difference
from megatron_ring.analysis.study_tables import difference

Verdict = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True)
class Claim:
    """A claim as a difference that it says to be above 0.

    Attributes:
        text: what is claimed.
        measured: what the difference is of, with its unit.
        found: the difference over seeds; None where it could not be measured.
        bound: the difference cannot be below 0, as a regret cannot: 0 for every seed then speaks against the claim.
    """

    text: str
    measured: str
    found: Difference | None
    bound: bool = False

    @property
    def verdict(self) -> Verdict:
        """By the 95 % interval: above 0 reproduced, below 0 not reproduced. What leaves 0 in is undecided."""
        if self.found is None or self.found.interval is None:
            return "undecided"
        low, high = self.found.interval.low, self.found.interval.high
        if low > 0:
            return "reproduced"
        return "not reproduced" if high < 0 or (self.bound and low == high == 0) else "undecided"


def claims_table(claims: Sequence[Claim]) -> str:
    """A line for each claim: what was measured, the difference with its interval, the verdict."""
    lines = ["| claim | measured | difference (95 % interval) | verdict |", "| --- | --- | --- | --- |"]
    for claim in claims:
        value = "not measured" if claim.found is None else difference(claim.found)
        lines.append(f"| {claim.text} | {claim.measured} | {value} | {claim.verdict} |")
    return "\n".join(lines) + "\n"


def claims_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [
        {
            "claim": claim.text,
            "measured": claim.measured,
            "difference": None if claim.found is None else claim.found.value,
            "interval_95": _ends(claim.found),
            "verdict": claim.verdict,
        }
        for claim in claims
    ]


def _ends(found: Difference | None) -> list[float] | None:
    return None if found is None or found.interval is None else [found.interval.low, found.interval.high]
