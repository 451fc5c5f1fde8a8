"""Exact duplicates: problems whose tokens are the same (`text.words`), whatever their spelling."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from megatron_ring.curation.grouping import AllRows, Decision, Group, Run, Signature, equal_groups, priority
from megatron_ring.curation.options import Exact
from megatron_ring.curation.rules import certainly_differs
from megatron_ring.curation.store import Row
from megatron_ring.curation.text import problem_key, words


class ExactDuplicates:
    """Finds them."""

    def __init__(self, options: Exact) -> None:
        self._options = options

    def sign(self, rows: Sequence[Row]) -> Signature:
        """`key`: [2, rows] of the problem; `answer`: [rows]; `priority`: [rows]."""
        keys = np.array([digest(problem_key(row)) for row in rows], np.uint64).reshape(-1, 2)
        answers = np.array([digest(_answer_text(row["answer"]))[0] for row in rows], np.uint64)
        return {"key": np.ascontiguousarray(keys.T), "answer": answers, "priority": priority(rows, self._options.prefer)}

    def decide(self, rows: AllRows, run: Run) -> Iterable[Decision]:
        answers = rows.column("answer")
        for group in equal_groups(rows.column("key"), rows.column("priority")):
            first, *others = group.members
            conflict = None
            if self._options.conflicts == "drop" and len(set(answers[list(group.members)].tolist())) > 1:
                conflict = _conflict(rows, group)
            if conflict is not None:
                for member in group.members:
                    yield Decision(member, "conflicting_answers", None, conflict)
                continue
            for other in others:
                yield Decision(other, "exact_duplicate", first, "a copy")


def digest(text: str) -> tuple[int, int]:
    """128 bits of a text, in two halves."""
    found = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little")


def _answer_text(answer: Any) -> str:
    return " ".join(words(answer)) if isinstance(answer, str) else json.dumps(answer, sort_keys=True, default=str)


def _conflict(rows: AllRows, group: Group) -> str | None:
    """What to say where two copies certainly have different answers."""
    found: dict[str, str] = {}
    for member in group.members:
        row = rows.row(member)
        if row["domain"] not in ("math", "science") or not isinstance(row["answer"], str):
            return None
        found.setdefault(row["answer"], row["id"])
    texts = list(found)
    for place, text in enumerate(texts):
        other = next((other for other in texts[:place] if certainly_differs(text, other)), None)
        if other is not None:
            return f"{found[other]} answers {other[:60]!r}, {found[text]} answers {text[:60]!r}"
    return None
