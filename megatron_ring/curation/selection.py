"""Some responses of each problem: so many of those to problems whose tokens are the same (`text.words`). Rows without a
response stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from megatron_ring.curation.exact import digest
from megatron_ring.curation.grouping import AllRows, Decision, Run, Signature, equal_groups
from megatron_ring.curation.options import PerProblem
from megatron_ring.curation.store import Row
from megatron_ring.curation.text import problem_key


class SomePerProblem:
    """Finds those that go."""

    def __init__(self, options: PerProblem) -> None:
        self._options = options

    def sign(self, rows: Sequence[Row]) -> Signature:
        """`key`: [2, rows] of the problem; `response`: [rows]; `priority`: [rows]."""
        keys = np.array([digest(_problem(row)) for row in rows], np.uint64).reshape(-1, 2)
        texts = [str(row.get("response") or "") for row in rows]
        responses = np.array([digest(" ".join(text.split()))[0] for text in texts], np.uint64)
        sign = {"first": 0, "shortest": 1, "longest": -1}[self._options.prefer]
        order = np.array([sign * len(text) for text in texts], np.int64)
        return {"key": np.ascontiguousarray(keys.T), "response": responses, "priority": order}

    def decide(self, rows: AllRows, run: Run) -> Iterable[Decision]:
        responses = rows.column("response")
        for group in equal_groups(rows.column("key"), rows.column("priority")):
            staying: dict[int, int] = {}
            for member in group.members:
                same = staying.get(int(responses[member]))
                if same is not None:
                    yield Decision(member, "same_response", same, "the response")
                elif len(staying) == self._options.keep:
                    first = next(iter(staying.values()))
                    yield Decision(member, "beyond_keep", first, f"{self._options.keep} responses stay to the problem")
                else:
                    staying[int(responses[member])] = member


def _problem(row: Row) -> str:
    """What rows that answer the same problem have in common; a row without a response has it with none."""
    if not row.get("response"):
        return f"id {row['id']}"
    return f"problem {problem_key(row)}"
