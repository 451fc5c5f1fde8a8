"""What is reported of judgements besides their mean: failures, length, the order of pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megatron_ring.judging.protocol import Case, Judgement, Protocol
from megatron_ring.judging.style import WORTH, controlled


def summarize(
    protocol: Protocol, cases: Sequence[Case], judgements: Sequence[Judgement], cut: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Counts and figures of one benchmark. `cut`: responses that were cut before they answered, and that no judge saw.

    `length_correlation` is Spearman's rank correlation of score and length (characters of the answer; of pairs, how much
    longer it is than the other one); None where one of the two is the same everywhere. A judge that likes length has a
    high one. So has a judge of answers that are better where they are longer.
    """
    judged = [(case, item) for case, item in zip(cases, judgements, strict=True) if item.score is not None]
    failures = Counter(item.reason.removeprefix("judge failed: ") for item in judgements if item.score is None)
    lengths = [float(len(case.answer) - len(case.other)) for case, _ in judged]
    found: dict[str, Any] = {
        "judged": len(judged), "judge_failed": len(judgements) - len(judged), "asked_again": _asked_again(judgements),
        "failures": dict(failures.most_common(10)),
        "length_correlation": rank_correlation(lengths, [item.score or 0.0 for _, item in judged]),
    }  # fmt: skip
    verdicts = Counter(verdict for _, item in judged for verdict in item.verdicts)
    found["verdicts"] = {value: verdicts[value] for value in protocol.worth}
    if protocol.both_orders and judged:
        found |= _of_pairs([item.verdicts for _, item in judged])
        texts = [(case.answer, case.other) for case, _ in judged]
        found["style_controlled"] = controlled(texts, [(item.verdicts[0], item.verdicts[1]) for _, item in judged])
    found |= _of_dimensions(judged)
    if protocol.name == "reference" and judged:
        found |= _of_references(verdicts, cut)
    return found


def _asked_again(judgements: Sequence[Judgement]) -> int:
    """Judgements that took a second reply."""
    return sum(bool(item.problems) for item in judgements)


def _of_pairs(games: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """How much the order decides, and the win rate that weighs clear wins more."""
    side = {"A>>B": 1, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -1}
    agree = sum(side[first] == -side[second] for first, second in games) / len(games)
    ahead = sum(side[first] == side[second] == 1 for first, second in games) / len(games)
    behind = sum(side[first] == side[second] == -1 for first, second in games) / len(games)
    weight = won = 0.0
    for first, second in games:
        for (share, counts), is_first in ((WORTH[first], True), (WORTH[second], False)):
            weight += counts
            won += counts * (share if is_first else 1 - share)
    return {"orders_agree": agree, "first_wins_both": ahead, "second_wins_both": behind, "weighted_win_rate": won / weight}


def _of_dimensions(judged: Sequence[tuple[Case, Judgement]]) -> dict[str, Any]:
    """The mean grade of each dimension, 1 to 10, and grades that replies lack; nothing without dimensions."""
    names = dict.fromkeys(name for case, _ in judged for name in case.dimensions)
    given = {name: [item.dimensions[name] for _, item in judged if name in item.dimensions] for name in names}
    wanted = sum(len(case.dimensions) for case, _ in judged)
    means = {name: sum(grades) / len(grades) for name, grades in given.items() if grades}
    return {"dimensions": means, "grades_missing": wanted - sum(map(len, given.values()))} if names else {}


def _of_references(verdicts: Counter[str], cut: int) -> dict[str, Any]:
    """SimpleQA's figures: right among those that answer, and the harmonic mean of it and the share of right ones. What was
    cut has not answered."""
    right, total = verdicts["CORRECT"], sum(verdicts.values()) + cut
    answered = verdicts["CORRECT"] + verdicts["WRONG"]
    given = right / answered if answered else 0.0
    correct = right / total
    return {"correct_given_answered": given, "f1": 2 * given * correct / (given + correct) if right else 0.0}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values with their mean rank; None for less than three pairs, or where one side is
    the same everywhere."""
    if len(first) < 3:
        return None
    sides = ranks(first), ranks(second)
    mean = (len(first) - 1) / 2
    spread = [math.fsum((rank - mean) ** 2 for rank in side) for side in sides]
    if not all(spread):
        return None
    shared = math.fsum((a - mean) * (b - mean) for a, b in zip(*sides, strict=True))
    return shared / math.sqrt(spread[0] * spread[1])


def ranks(values: Sequence[float]) -> list[float]:
    """From 0, in the order of the values; equal ones share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            found[place] = (start + end) / 2
        start = end + 1
    return found
